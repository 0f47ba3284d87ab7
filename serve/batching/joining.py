"""The inputs of several requests as those of one engine call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def join(requests: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows one below the other, by input name."""
    if len(requests) == 1:
        return dict(requests[0])
    return {name: stack([inputs[name] for inputs in requests]) for name in requests[0]}


def stack(parts: list[np.ndarray]) -> np.ndarray:
    """Rows one below the other. numpy gives up the interpreter lock for each part, and has to win it back from a
    busy event loop each time (2.6 ms for 32 parts of 12 kB); joining bytes keeps it.
    """
    first = parts[0]
    if first.dtype.kind not in "biuf" or not all(part.flags.c_contiguous and part.size for part in parts):
        return np.concatenate(parts)
    joined = np.frombuffer(b"".join([part.data for part in parts]), first.dtype)
    return joined.reshape(-1, *first.shape[1:])
