"""The random states of this process: torch, numpy, Python, as plain tensors.

Invariant: `restore(capture())` changes nothing; what comes out are uint8 tensors of a fixed length for a machine, so
that workers exchange them without pickle.

Covered: CPU, the current CUDA device. Not covered: generators that a user keeps for himself.
"""

from __future__ import annotations

import ctypes
import json
import random
from typing import cast

import numpy as np
import torch

PYTHON_BYTES = 16384  # 625 numbers of at most 10 digits with separators, and room


def seed_everything(seed: int, rank: int) -> None:
    """Different streams on every worker: the same seed everywhere would give all of them the same dropout."""
    words = np.random.SeedSequence([seed, rank]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def capture() -> dict[str, torch.Tensor]:
    """Names `torch`, `cuda` (with a GPU), `numpy`, `python`."""
    states = {"torch": torch.get_rng_state(), "numpy": _pack_numpy(), "python": _pack_python()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(states: dict[str, torch.Tensor]) -> None:
    """Set what `capture` gave. Raises KeyError for a missing part: a run must not go on with other numbers."""
    # a copy: torch reads the state as a C struct and needs it aligned, which a slice of a mapped file is not
    torch.set_rng_state(states["torch"].clone())
    _unpack_numpy(states["numpy"])
    _unpack_python(states["python"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class QuickSnapshots:
    """The same in the libraries' own form: cheap enough for every update, not for a file.

    numpy's own `get_state` takes longer than the rest of a small update's bookkeeping. Whether its generator has
    moved since the last snapshot is one comparison of its words, which numpy shows through its ctypes interface. A
    normal number that the legacy generator keeps back is outside of these words; while there is one the state is
    taken anew each time.
    """

    def __init__(self) -> None:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        words = _numpy_state()[1]
        address = int(generator.ctypes.state_address)
        view = np.ctypeslib.as_array((ctypes.c_uint32 * (len(words) + 1)).from_address(address))
        same = generator.__class__.__name__ == "MT19937" and np.array_equal(view[:-1], words)
        self._generator, self._live = generator, view if same else None
        self._seen = b""
        self._numpy: tuple | None = None

    def take(self) -> tuple:
        """What `quick_restore` takes."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return torch.get_rng_state(), self._of_numpy(), random.getstate(), cuda

    def _of_numpy(self) -> tuple:
        if self._live is None or np.random.get_bit_generator() is not self._generator:  # type: ignore[attr-defined]
            return _numpy_state()
        words = self._live.tobytes()
        if self._numpy is None or words != self._seen or self._numpy[3]:
            self._seen, self._numpy = words, _numpy_state()
        return self._numpy


def quick_restore(snapshot: tuple) -> None:
    cpu, numpy_state, python_state, cuda = snapshot
    torch.set_rng_state(cpu)
    np.random.set_state(numpy_state)
    random.setstate(python_state)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


def _numpy_state() -> tuple:
    return cast(tuple, np.random.get_state(legacy=True))


def _pack_numpy() -> torch.Tensor:
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    words = np.concatenate([np.asarray(keys, np.uint32), np.array([position, has_gauss], np.uint32)])
    return torch.from_numpy(np.frombuffer(words.tobytes() + np.float64(gauss).tobytes(), np.uint8).copy())


def _unpack_numpy(packed: torch.Tensor) -> None:
    data = packed.numpy().tobytes()
    words = np.frombuffer(data[:-8], np.uint32)
    gauss = float(np.frombuffer(data[-8:], np.float64)[0])
    np.random.set_state(("MT19937", words[:-2], int(words[-2]), int(words[-1]), gauss))


def _pack_python() -> torch.Tensor:
    version, words, gauss = random.getstate()
    text = json.dumps([version, list(words), gauss]).encode()
    return torch.from_numpy(np.frombuffer(text.ljust(PYTHON_BYTES), np.uint8).copy())


def _unpack_python(packed: torch.Tensor) -> None:
    version, words, gauss = json.loads(packed.numpy().tobytes().decode())
    random.setstate((version, tuple(words), gauss))
