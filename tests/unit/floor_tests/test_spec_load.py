"""A spec that loads is complete and typed; one that does not tells every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import SpecError
from cluster.spec.load import load_spec, override_spec, parse_spec

MINIMAL = "version: 1\ndata:\n  source: {kind: sklearn, dataset: digits}\n"


def problems(text: str, *overrides: str) -> dict[str, dict[str, object]]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, overrides)
    assert caught.value.exit_code == 2
    return {problem["path"]: problem for problem in caught.value.problems}


def test_every_problem_is_reported_at_once_with_path_value_rule_and_nearest_key() -> None:
    found = problems(
        "version: 1\n"
        "data: {source: {kind: csv, pth: a.csv, delimiter: 3}, splt: {}}\n"
        "train: {epochs: 0, batch_size_global: fast}\n"
        "serve: {replicas: {min: 3, max: 1}}\n"
    )
    assert set(found) == {
        "data.source.path",
        "data.source.pth",
        "data.source.delimiter",
        "data.splt",
        "train.epochs",
        "train.batch_size_global",
        "serve.replicas",
    }
    assert found["data.source.pth"]["nearest"] == "data.source.path"
    assert found["data.splt"]["nearest"] == "data.split"
    assert found["train.epochs"]["value"] == "0"
    assert found["train.batch_size_global"]["rule"] == "must be 'auto' or a valid integer"


def test_unknown_version_is_refused() -> None:
    assert set(problems(MINIMAL.replace("version: 1", "version: 2"))) == {"version"}


def test_wrong_type_is_refused_and_not_coerced() -> None:
    assert set(problems(MINIMAL + "seed: '7'\n")) == {"seed"}
    assert set(problems(MINIMAL + "train: {epochs: 2.0}\n")) == {"train.epochs"}


def test_unknown_union_member_is_named() -> None:
    found = problems("version: 1\ndata:\n  source: {kind: csvv, path: a}\n")
    assert "csv" in str(found["data.source.kind"]["rule"])
    assert found["data.source.kind"]["value"] == '"csvv"'
    assert problems(MINIMAL, "model.family=resnet")["model.family"]["text"] == (
        'model.family: must be one of auto, mlp, cnn, transformer, timm, torchvision, transformers, found "resnet"'
    )


def test_what_other_tools_write_is_answered_with_what_is_written_here() -> None:
    text = "version: 1\ndata: {target: 1, source: {kind: csv, path: t.csv, header: null}}\n"
    found = {path: str(problem["text"]) for path, problem in problems(text).items()}
    assert found["data.target"].endswith('found 1; a name that is a number stands in quotes: "1"')
    assert found["data.source.header"].endswith("found null; a file without a header line is header: false")


def test_the_recipe_of_masks_is_refused_with_what_to_use() -> None:
    text = str(problems(MINIMAL, "compress.recipes=[int8_static, sparse]")["compress.recipes.1"]["text"])
    assert list(problems(MINIMAL, "compress.recipes=[sparse]")) == ["compress.recipes.0"], (
        "the list is not too short beside"
    )
    assert list(problems(MINIMAL, "compress.recipes=[]")) == ["compress.recipes"]
    assert "weights that are zero take as many bytes and as much time as others; use prune" in text


def test_a_figure_beyond_all_use_is_a_slip_of_the_pen() -> None:
    assert set(problems(MINIMAL, "train.epochs=999999999999999999999999")) == {"train.epochs"}


def test_duplicate_keys_are_refused() -> None:
    with pytest.raises(SpecError, match="appears twice"):
        parse_spec(MINIMAL + "seed: 1\nseed: 2\n")


def test_scientific_notation_without_a_dot_is_a_number() -> None:
    spec = parse_spec(MINIMAL + "train: {optimizer: {learning_rate: 3e-3}}\n")
    assert spec.train.optimizer.learning_rate == 0.003


def test_overrides_replace_nested_values_and_create_sections() -> None:
    spec = parse_spec(MINIMAL, ["train.optimizer.learning_rate=3e-3", "train.epochs=2", "serve=null"])
    assert (spec.train.optimizer.learning_rate, spec.train.epochs, spec.serve) == (0.003, 2, None)


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3"])
def test_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(SpecError, match="path=value"):
        parse_spec(MINIMAL, [override])


def test_override_of_an_unknown_key_is_an_unknown_key() -> None:
    assert set(problems(MINIMAL, "train.epocs=3")) == {"train.epocs"}


def test_spec_is_frozen() -> None:
    spec = parse_spec(MINIMAL)
    with pytest.raises(ValidationError):
        spec.train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "empty"), (b"  \n", "empty"), (b"\xff\xfe\x00", "binary"), (b"a\x00b", "binary"), (b"[1, 2]", "a list")],
)
def test_unusable_files_end_in_one_sentence(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=found):
        load_spec(path)


def test_missing_file_suggests_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(MINIMAL)
    with pytest.raises(SpecError, match="Did you mean"):
        load_spec(tmp_path / "quikstart.yaml")


def test_directory_is_not_a_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="directory"):
        load_spec(tmp_path)


def test_override_spec_round_trips_every_default() -> None:
    spec = parse_spec(MINIMAL)
    assert override_spec(spec, {}) == spec


@settings(deadline=None)  # a shared core makes any time limit a coin toss
@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.none() | st.booleans() | st.integers() | st.text(), max_size=4)
)
def test_arbitrary_mappings_never_escape_as_another_error(raw: dict[str, object]) -> None:
    from cluster.spec.load import validate_spec

    with pytest.raises(SpecError):
        validate_spec(raw)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [", "line 1"),
        ("a: b: c", "line 1, column 5"),
        ("when: 2026-13-45", "month"),
        ("? [1, 2]\n: 3", "a key must be a text, found a list"),
        ("2026-01-01: 3", "a key must be a text"),
        ("a: !!bool maybe", "tag"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("[" * 3000, "too deeply"),
    ],
)
def test_text_that_is_no_yaml_says_where_and_never_escapes_as_another_error(text: str, found: str) -> None:
    with pytest.raises(SpecError, match="not valid YAML") as caught:
        parse_spec(text)
    assert found in caught.value.message
    assert "unicode string" not in caught.value.message
    with pytest.raises(SpecError, match="not valid YAML"):
        parse_spec(MINIMAL, [f"data={text}"])


def test_sections_may_be_shared_and_own_keys_win() -> None:
    spec = parse_spec(MINIMAL + "train: {<<: {epochs: 5, workers: 1}, epochs: 2}\n")
    assert (spec.train.epochs, spec.train.workers) == (2, 1)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400"])
def test_numbers_are_finite(value: str) -> None:
    assert set(problems(MINIMAL, f"train.optimizer.learning_rate={value}")) == {"train.optimizer.learning_rate"}


@pytest.mark.parametrize("path", ["seed", "data.split.seed", "search.seed"])
@pytest.mark.parametrize("value", ["-1", "4294967296", "1.5"])
def test_a_seed_is_what_every_library_takes(path: str, value: str) -> None:
    assert path in problems(MINIMAL, f"{path}={value}")


def test_what_was_written_is_shown_as_it_was_written() -> None:
    assert "größe" in str(problems(MINIMAL, "train.epochs=größe")["train.epochs"]["text"])
