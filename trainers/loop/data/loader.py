"""Rows by index, a whole micro-batch at a time: no per-sample Python, no collate.

Invariant: a read is a pure function of the row numbers; the weight of a window is known from targets and weights
alone, before its first forward, and is the same number on every worker without asking the others.

Covered: splits in memory, splits larger than that from the memory map with the next window read in a thread, pinned
copies for a GPU. Not covered: decoding of images on the fly (the prepare stage decodes).
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from cluster.errors import SpecError
from cluster.spec.train import LossSpec
from trainers.data.shards import Split
from trainers.loop.data.sampler import Window
from trainers.loop.parts.losses import IGNORE_INDEX, MicroBatch

CHECKED_ROWS = 8192  # of a check for values that are not finite: bounds what it needs beside the rows
IN_MEMORY_BYTES = 1 << 30  # up to a GiB a split is copied into memory once: an index is then one gather


class SplitReader:
    """Reads micro-batches of one split for one device."""

    def __init__(self, split: Split, device: torch.device, weights: np.ndarray | None = None) -> None:
        """`weights`: (N,) float32 from `row_weights`, or None for all ones."""
        self.num_rows = len(split)
        self.device = device
        self.wait_s = 0.0
        """Seconds that updates have waited for rows."""
        self.weights = weights
        arrays = (*split.inputs.values(), split.targets)
        self.in_memory = sum(array.nbytes for array in arrays) <= IN_MEMORY_BYTES
        self.targets_on_host = np.asarray(split.targets)
        self._arrays = [torch.from_numpy(np.array(array)) if self.in_memory else array for array in arrays]
        self._weights = None if weights is None else torch.from_numpy(weights)
        self._ahead: dict[tuple[int, int, int, int], Future[MicroBatch]] = {}
        self._thread = None if self.in_memory else ThreadPoolExecutor(1, thread_name_prefix="loader")

    def read(self, rows: np.ndarray) -> MicroBatch:
        """The rows as tensors on the device."""
        index = torch.from_numpy(rows)
        *inputs, targets = (self._take(array, rows, index) for array in self._arrays)
        if self._weights is None or self.weights is None:
            return MicroBatch(tuple(inputs), targets)
        valid = np.flatnonzero(self.weights[rows] > 0)  # in the loss it would be read from the device
        weights = self._move(self._weights.index_select(0, index))
        return MicroBatch(tuple(inputs), targets, weights, self._move(torch.from_numpy(valid)))

    def not_finite(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(k,) int64: those of `rows`, or of all, that hold a NaN or an infinity in an input or in a quantity."""
        rows = np.arange(self.num_rows) if rows is None else rows
        found = [self._not_finite(rows[at : at + CHECKED_ROWS]) for at in range(0, len(rows), CHECKED_ROWS)]
        return np.concatenate(found) if found else rows[:0]

    def _not_finite(self, rows: np.ndarray) -> np.ndarray:
        bad = np.zeros(len(rows), bool)
        for array in self._arrays:
            values = array[torch.from_numpy(rows)] if isinstance(array, torch.Tensor) else torch.from_numpy(array[rows])
            if values.is_floating_point():
                bad |= ~torch.isfinite(values.reshape(len(rows), -1)).all(dim=1).numpy()
        return rows[bad]

    def read_slice(self, window: Window, where: slice) -> MicroBatch:
        """A micro-batch of a window, from what was read ahead where it was."""
        started = time.perf_counter()
        ready = self._ahead.pop((window.epoch, window.index, where.start, where.stop), None)
        batch = self.read(window.rows[where]) if ready is None else ready.result()
        self.wait_s += time.perf_counter() - started
        return batch

    def read_ahead(self, window: Window, micro_size: int) -> None:
        """Start reading a window that comes next. Does nothing for a split in memory."""
        if self._thread is None:
            return
        for where in window.micro_slices(micro_size):
            key = (window.epoch, window.index, where.start, where.stop)
            self._ahead[key] = self._thread.submit(self.read, window.rows[where])

    def forget_ahead(self) -> None:
        """Drop what was read ahead: the cursor has moved elsewhere."""
        self._ahead.clear()

    def close(self) -> None:
        """Stop the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def weight_of(self, rows: np.ndarray) -> float:
        """Σ of the weights of the valid items of rows."""
        if self.weights is not None:
            return float(self.weights[rows].sum(dtype=np.float64))
        if self.targets_on_host.ndim == 1:
            return float(len(rows))
        return float(np.count_nonzero(self.targets_on_host[rows] != IGNORE_INDEX))

    def _take(self, array: torch.Tensor | np.ndarray, rows: np.ndarray, index: torch.Tensor) -> torch.Tensor:
        if isinstance(array, torch.Tensor):
            return self._move(array.index_select(0, index))
        return self._move(torch.from_numpy(array[rows]))

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def row_weights(split: Split, spec: LossSpec, num_classes: int) -> np.ndarray | None:
    """(N,) float32: sample weight × class weight, 0 for ignored targets; None where all are 1."""
    targets = np.asarray(split.targets)
    weights: np.ndarray | None = None if split.weights is None else np.array(split.weights, np.float32)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        return weights
    valid = targets != IGNORE_INDEX
    if spec.class_weights is not None:
        by_class = class_weights(targets[valid], spec, num_classes)
        weights = (1.0 if weights is None else weights) * by_class[np.where(valid, targets, 0)]
    if not valid.all():
        weights = np.where(valid, 1.0 if weights is None else weights, 0.0)
    return None if weights is None else weights.astype(np.float32)


def class_weights(targets: np.ndarray, spec: LossSpec, num_classes: int) -> np.ndarray:
    """(C,) float32 weights. Raises SpecError for a list of another length."""
    if spec.class_weights == "balanced":
        counts = np.bincount(targets, minlength=num_classes)
        return (len(targets) / (num_classes * np.maximum(counts, 1))).astype(np.float32)
    given = tuple(spec.class_weights or ())
    if len(given) != num_classes:
        raise SpecError(
            "Cannot weight the classes",
            found=f"train.loss.class_weights has {len(given)} values and the data has {num_classes} classes",
            rule="one weight for each class, in the order of the classes",
            remedy="Give one value a class, or write 'balanced'.",
        )
    return np.array(given, np.float32)
