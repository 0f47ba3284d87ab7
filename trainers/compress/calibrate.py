"""Ranges of activations from real rows, as ONNX Runtime's calibration cache, in bounded memory.

ONNX Runtime 1.32 holds every intermediate output of every row for its histogram methods, and its option to merge
ranges on the way (`CalibMaxIntermediateOutputs`) drops what it has collected without merging it. So rows are handed
over batch by batch here, and each batch is merged before the next one is read.

Invariant: at most one batch of intermediate outputs is in memory; the ranges are those of all rows.

Covered: MinMax, Entropy, Percentile. Not covered: Distribution (for FP8).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator, save_tensors_data

from cluster.errors import DataError, ModelError
from trainers.compress.presets import StaticRecipe

BATCH_ROWS = 32  # of intermediate outputs in memory; large enough to keep a core busy
ENTROPY_BINS = 512  # with ONNX Runtime's 128 there is but one threshold to choose from; 2,048 take seconds a tensor


class BatchReader(CalibrationDataReader):
    """Streams rows in batches; holds one batch in memory."""

    def __init__(self, inputs: Mapping[str, np.ndarray], batch_rows: int = BATCH_ROWS) -> None:
        rows = len(next(iter(inputs.values()), ()))
        if not rows:
            raise DataError(
                "Cannot calibrate",
                found="there are no calibration rows",
                rule="static quantization takes the ranges of activations from real rows",
                remedy="Make data.split.calibration larger.",
            )
        self._inputs = inputs
        self._batch_rows = batch_rows
        self._rows = rows
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self._next >= self._rows:
            return None
        chosen = slice(self._next, self._next + self._batch_rows)
        self._next += self._batch_rows
        return {name: np.ascontiguousarray(array[chosen]) for name, array in self._inputs.items()}

    def __len__(self) -> int:
        return math.ceil(self._rows / self._batch_rows)


def write_ranges(prepared: Path, inputs: Mapping[str, np.ndarray], cache: Path, recipe: StaticRecipe) -> None:
    """Calibrate the graph `prepared` and write the cache that `quantize_static` reads. Raises DataError, ModelError."""
    options: dict[str, object] = {"symmetric": recipe.preset.symmetric}
    if recipe.method is CalibrationMethod.Percentile:
        options["percentile"] = recipe.percentile
    if recipe.method is CalibrationMethod.Entropy:
        options["num_bins"] = ENTROPY_BINS
    with quiet_quantizer():
        calibrator = create_calibrator(
            str(prepared),
            list(recipe.preset.op_types),
            augmented_model_path=str(cache.with_suffix(".augmented.onnx")),
            calibrate_method=recipe.method,
            extra_options=options,
        )
        reader = BatchReader(inputs)
        for batch in iter(reader.get_next, None):
            calibrator.collect_data(_OneBatch(batch))
        ranges = calibrator.compute_data()
        _check_ranges(ranges)
        save_tensors_data(ranges, cache)
    cache.with_suffix(".augmented.onnx").unlink(missing_ok=True)


class _OneBatch(CalibrationDataReader):
    """A reader of just one batch, so that the calibrator merges after each."""

    def __init__(self, batch: dict[str, np.ndarray]) -> None:
        self._batch: dict[str, np.ndarray] | None = batch

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch, self._batch = self._batch, None
        return batch


def _check_ranges(ranges: TensorsData) -> None:
    for name, data in ranges.items():
        if not all(np.isfinite(np.asarray(bound)).all() for bound in data.range_value):
            raise ModelError(
                "Cannot calibrate",
                found=f"tensor '{name}' reaches NaN or infinity on the calibration rows",
                rule="ranges must be finite",
                remedy="Look for extreme values in the data, or train with a lower learning rate.",
            )


@contextlib.contextmanager
def quiet_quantizer() -> Iterator[None]:
    """ONNX Runtime's quantizer advises on the root logger and prints; its advice is followed, so neither is shown."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
