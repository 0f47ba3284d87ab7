"""What every engine must do. A test class inherits from `EngineConformance` and gives `make(folder)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.bundle import Bundle, TensorSignature
from cluster.bundle.independence import allowed_changes, measure_independence
from serve.engines.engine import Engine, EngineRequest


def request_of(bundle: Bundle, **changes: object) -> EngineRequest:
    """The request that loading makes for a bundle's default variant."""
    variant = bundle.variant()
    values = {
        "path": bundle.path(variant.file),
        "signature": bundle.manifest.signature,
        "max_rows": 8,
        "num_threads": 1,
        "model": bundle.manifest.model,
    }
    return EngineRequest(**{**values, **changes})  # type: ignore[arg-type]


class EngineConformance:
    """Inherit, and override `make`."""

    def make(self, folder: Path) -> tuple[Engine, TensorSignature]:
        """An engine, and the signature it was made for."""
        raise NotImplementedError

    @pytest.fixture
    def made(self, tmp_path: Path) -> object:
        engine, signature = self.make(tmp_path)
        yield engine, signature
        engine.close()

    def inputs(self, signature: TensorSignature, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            tensor.name: rng.random((rows, *(max(size, 1) for size in tensor.item_shape))).astype(tensor.dtype)
            for tensor in signature.inputs
        }

    def test_it_names_its_platform(self, made: tuple[Engine, TensorSignature]) -> None:
        assert made[0].platform
        assert all(rows > 0 for rows in made[0].preferred_rows)

    @pytest.mark.parametrize("rows", [1, 3, 8])
    def test_each_output_has_a_row_for_each_row(self, made: tuple[Engine, TensorSignature], rows: int) -> None:
        engine, signature = made
        outputs = engine.run(self.inputs(signature, rows))
        assert set(outputs) == {tensor.name for tensor in signature.outputs}
        assert [tensor.mismatch(outputs[tensor.name]) for tensor in signature.outputs] == [None] * len(outputs)
        assert {len(array) for array in outputs.values()} == {rows}

    def test_a_row_does_not_depend_on_its_neighbors(self, made: tuple[Engine, TensorSignature]) -> None:
        engine, signature = made
        rows = self.inputs(signature, 16)
        answers = [engine.run({name: array[i : i + 8] for name, array in rows.items()}) for i in (0, 8)]
        allowed = allowed_changes({name: np.concatenate([one[name] for one in answers]) for name in answers[0]})
        found = measure_independence(lambda batch: engine.run(batch), rows, allowed, sizes=(2, 3, 7, 8))
        assert found.independent, found.sentence()

    def test_it_leaves_its_inputs_as_they_are(self, made: tuple[Engine, TensorSignature]) -> None:
        engine, signature = made
        inputs = self.inputs(signature, 2)
        before = {name: array.copy() for name, array in inputs.items()}
        for array in inputs.values():
            array.flags.writeable = False  # as the codec hands them out: views of the request's body
        engine.run(inputs)
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, before[name])

    def test_an_error_is_not_the_end(self, made: tuple[Engine, TensorSignature]) -> None:
        engine, signature = made
        with pytest.raises(Exception):  # noqa: B017 - whatever the engine's own library raises
            engine.run({})
        assert engine.run(self.inputs(signature, 1))

    def test_its_footprint_is_known_or_none(self, made: tuple[Engine, TensorSignature]) -> None:
        footprint = made[0].footprint_bytes()
        assert footprint is None or footprint >= 0
