"""Files of raw rows for `manta predict`: every format gives the same rows, and a bad one is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import RequestError
from serve.row_files import read_image, read_rows

ROWS = [{"age": "3", "city": "Rome, Italy"}, {"age": "", "city": 'the "city"'}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'age,city\n3,"Rome, Italy"\n,"the ""city"""\n'),
        ("b.csv", b'\xef\xbb\xbfage, city\r\n3,"Rome, Italy"\r\n,"the ""city"""\r\n'),
        ("a.tsv", b'age\tcity\n3\tRome, Italy\n\tthe "city"\n'),
        ("a.json", b'[{"age": "3", "city": "Rome, Italy"}, {"age": "", "city": "the \\"city\\""}]'),
        ("a.jsonl", b'{"age": "3", "city": "Rome, Italy"}\n\n{"age": "", "city": "the \\"city\\""}\n'),
    ],
)
def test_the_same_rows_from_every_format(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_rows(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has another number of fields than the header, 2"),
        ("a.csv", b"a,b\n1\n", "line 2 has another number of fields"),
        ("a.csv", b"a,b\n\xe9,2\n", "UnicodeDecodeError"),
        ("a.csv", b"a,b\n", "it has no rows"),
        ("a.csv", b"", "it has no rows"),
        ("a.json", b"[1,", "JSONDecodeError"),
        ("a.json", b"[]", "it has no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "JSONDecodeError"),
        ("a.npy", b"\x93NUMPY", "ValueError"),
        ("a.xlsx", b"PK", "its type is '.xlsx'; one of .csv, .tsv, .json, .jsonl, .npy, .png"),
    ],
)
def test_a_bad_file_is_one_sentence(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError) as caught:
        read_rows(tmp_path / name)
    assert words in caught.value.message


def test_an_array_of_objects_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RequestError, match="allow_pickle=False"):
        read_rows(tmp_path / "o.npy")


def test_rows_come_from_files_of_three_kinds_and_images_go_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,city\n3,Rome\n")
    assert read_rows(tmp_path / "a.csv") == [{"age": "3", "city": "Rome"}]
    (tmp_path / "a.json").write_text(json.dumps({"age": 3}))
    assert read_rows(tmp_path / "a.json") == [{"age": 3}]
    np.save(tmp_path / "a.npy", np.eye(2))
    assert read_rows(tmp_path / "a.npy") == [[1.0, 0.0], [0.0, 1.0]]
    Image.new("L", (4, 4), 255).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png") == (tmp_path / "a.png").read_bytes()
    for bad in ("a.txt", "absent.csv"):
        with pytest.raises(RequestError):
            read_rows(tmp_path / bad)
    with pytest.raises(RequestError):
        read_image(tmp_path / "absent.png")
