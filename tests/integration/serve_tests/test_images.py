"""Image files and raw arrays over HTTP: the served answer is that of the pipeline that prepared the training data.

The transforms are fitted by the data room; the reference reads the same files with the data room's own reader, does the
arithmetic by hand and asks ONNX Runtime; the other side is `python -m serve` as a process.
"""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cluster.bundle import open_bundle
from cluster.bundle.files import TRANSFORMS
from serve.deployments.__main__ import main
from serve.deployments.directory import remember
from tests.bundles import make_bundle, softmax, with_transforms
from tests.contract.protocol_tests.conftest import server_process
from tests.unit.data_tests.making import data_spec, prepare, run_spec
from trainers.data.read.images import read_image_folder
from trainers.data.shards import open_prepared

TOLERANCE = 1e-5
SIZE = (12, 10)


class Served:
    """An endpoint over what the data room prepared, and the pipeline's own answers."""

    def __init__(self, folder: Path, spec: Any, num_classes: int) -> None:
        prepare(folder / "prepared", spec)
        self.facts = open_prepared(folder / "prepared").facts
        (tensor,) = open_prepared(folder / "prepared").inputs
        text = (folder / "prepared" / TRANSFORMS).read_text(encoding="utf-8")
        bundle = make_bundle(folder / "bundle", item_shape=tensor.item_shape, num_outputs=num_classes)
        self.bundle = with_transforms(bundle, json.loads(text))
        self.shape = tensor.item_shape
        self.url = ""

    def expected(self, raw: np.ndarray) -> np.ndarray:
        """Probabilities of (N, C, H, W) raw values, by hand."""
        mean, deviation = (np.array(self.facts[name])[:, None, None] for name in ("mean", "deviation"))
        features = ((raw.astype(np.float64) - mean) / deviation).astype(np.float32)
        return softmax(self.bundle / "model.onnx", features)

    def post(self, path: str = "/predict/image", **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=30, trust_env=False, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Color images of several sizes, formats and modes, resized by the spec."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "train", 40, seed=0)
    source = {"kind": "image_folder", "path": str(folder / "train"), "size": list(SIZE)}
    shares = {"validation": 4, "calibration": 0, "gate": 0, "test": 4}
    made = Served(folder, run_spec(source, split=shares), 2)
    with server_process(made.bundle) as address:
        made.url = f"http://{address}"
        yield made


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("digits"), run_spec({"kind": "sklearn", "dataset": "digits"}), 10)
    with server_process(made.bundle) as address:
        made.url = f"http://{address}"
        yield made


def write_photos(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for index in range(count):
        home = folder / ("cat" if index % 2 else "dog")
        home.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(8, 40, 2)
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8))
        mode = ("RGB", "L", "RGBA", "P")[index % 4]
        suffix = (".png", ".jpg", ".bmp", ".gif", ".webp")[index % 5]
        image.convert(mode if suffix != ".jpg" else "RGB").save(home / f"{index}{suffix}")


def probabilities(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([list(row["probabilities"].values()) for row in answer.json()["predictions"]])


def test_an_image_file_has_the_probabilities_of_the_training_pipeline(photos: Served, tmp_path: Path) -> None:
    write_photos(tmp_path / "new", 20, seed=1)
    source = data_spec({"kind": "image_folder", "path": str(tmp_path / "new"), "size": list(SIZE)}).source
    expected = photos.expected(read_image_folder(source)[0])  # type: ignore[arg-type]
    paths = sorted((tmp_path / "new").glob("*/*"))
    alone = [photos.post(content=path.read_bytes()) for path in paths]
    np.testing.assert_allclose(np.concatenate([probabilities(one) for one in alone]), expected, atol=TOLERANCE, rtol=0)
    together = photos.post(files=[("file", (path.name, path.read_bytes())) for path in paths])
    np.testing.assert_allclose(probabilities(together), expected, atol=TOLERANCE, rtol=0)
    assert len(np.unique(expected.round(5), axis=0)) == len(paths)  # the pixels matter


def test_the_api_description_says_how_files_are_sent(photos: Served) -> None:
    paths = httpx.get(f"{photos.url}/openapi.json", trust_env=False).json()["paths"]
    content = paths["/predict/image"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", *(f"image/{name}" for name in ("png", "jpeg", "bmp", "gif", "webp"))}


def test_what_was_resized_is_said(photos: Served, tmp_path: Path) -> None:
    for shape, notes in ((SIZE, []), ((30, 20), ["resized from 30×20 to 12×10 pixels"])):
        assert photos.post(content=png(np.zeros((*shape, 3), np.uint8))).json()["notes"] == notes


def test_a_digit_as_png_as_nested_lists_and_by_name_has_one_answer(digits: Served) -> None:
    images = load_digits().images[:12]
    expected = digits.expected(images[:, None])
    by_rows = digits.post("/predict", json={"rows": images.tolist()})
    by_name = digits.post("/predict", json={"rows": [{"image": image[None].tolist()} for image in images]})
    for answer in (by_rows, by_name):
        np.testing.assert_allclose(probabilities(answer), expected, atol=TOLERANCE, rtol=0)
    gray = np.round(images * 255 / 16).astype(np.uint8)  # a pixel of 255 is the value 16
    by_file = digits.post(files=[("file", ("d.png", png(image))) for image in gray])
    want = digits.expected((gray[:, None] * (16 / 255)).astype(np.float32))
    np.testing.assert_allclose(probabilities(by_file), want, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(probabilities(by_file), expected, atol=0.01, rtol=0)


@pytest.fixture
def predict(digits: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any, str]]:
    """`manta predict digits FILE --json` as its own module runs it: exit code, JSON, stderr."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.temporary.shared_base", lambda: tmp_path)
    remember("digits", digits.url, "10.0.0.1:1")

    def call(path: Path, *words: str) -> tuple[int, Any, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["predict", "digits", str(path), "--json", *words])
        return code, json.loads(out.getvalue()), err.getvalue()

    return call


def test_the_command_sends_image_files_and_arrays_and_gets_the_same_answers(
    digits: Served, predict: Callable[..., Any], tmp_path: Path
) -> None:
    images = load_digits().images[:3]
    np.save(tmp_path / "rows.npy", images)
    code, answer, _ = predict(tmp_path / "rows.npy")
    got = np.array([list(row["probabilities"].values()) for row in answer["predictions"]])
    assert code == 0
    np.testing.assert_allclose(got, digits.expected(images[:, None]), atol=TOLERANCE, rtol=0)
    gray = np.round(images[0] * 255 / 16).astype(np.uint8)
    Image.fromarray(gray).save(tmp_path / "seven.png")
    code, answer, stderr = predict(tmp_path / "seven.png")
    assert (code, answer["notes"], stderr) == (0, [], "")
    assert answer["predictions"] == digits.post(content=png(gray)).json()["predictions"]
    Image.fromarray(gray).resize((40, 30)).save(tmp_path / "large.png")
    assert "Note: resized from 30×40 to 8×8 pixels." in predict(tmp_path / "large.png")[2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"hello", "no image that is read here"),
        ("a.png", b"", "the file is empty"),
        ("a.json", b"[[1, 2]]", "shape [2]"),
        ("a.csv", b"a,b\n1,2\n", "'image' is missing in row 0"),
        ("absent.png", None, "FileNotFoundError"),
    ],
)
def test_the_command_ends_with_2_for_rows_that_do_not_fit(
    name: str, content: bytes | None, words: str, predict: Callable[..., Any], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, answer, _ = predict(tmp_path / name)
    assert (code, words in answer["error"]["message"]) == (2, True), answer
    assert predict(tmp_path / name, "--version", "9")[0] == 2


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header promises side × side pixels of gray."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    packed = zlib.compress(bytes(side + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


GOOD = png(np.zeros((8, 8), np.uint8))
NOISE = png(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "the file is empty"),
    "text": (b"hello", 415, "no image that is read here"),
    "pdf": (b"%PDF-1.7\n", 415, "PNG, JPEG, BMP, GIF, WEBP"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no image that is read here"),
    "a format that is not offered": (b"II*\x00\x08\x00\x00\x00\x00\x00", 415, "no image that is read here"),
    "cut short": (NOISE[: len(NOISE) // 2], 400, "the image is damaged"),
    "past our limit": (bomb(5000), 413, "5000 × 5000 pixels; at most 16,777,216"),
    "a decompression bomb": (bomb(30_000), 413, "at most 16,777,216 pixels"),
    "past the limit of a body": (bytes((64 << 20) + 1), 413, "at most 67108864"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_file_that_is_no_image_is_a_json_error(case: str, digits: Served) -> None:
    body, status, words = BODIES[case]
    answers = [digits.post(content=body, headers={"Content-Type": "image/png"})]
    if len(body) < 1 << 20:
        answers.append(digits.post(files={"file": ("a.png", body)}))
    for answer in answers:
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
        assert words in answer.json()["error"]
    assert digits.post(content=GOOD).status_code == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": {"file": "text"}, "files": {"x": ("a.png", GOOD)}}, "'file' is no file"),
        ({"files": [("file", ("a.png", GOOD))] * 65}, "Too many files"),
        ({"content": b"--", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
        ({"files": [("file", ("a.png", GOOD)), ("file", ("b.png", b"x"))]}, "image 1: the file is no image"),
    ],
    ids=["a field", "65 files", "no boundary", "the second is broken"],
)
def test_a_form_that_breaks_a_rule_is_a_json_error(options: dict[str, Any], words: str, digits: Served) -> None:
    answer = digits.post(**options)
    assert answer.status_code in (400, 413, 415)
    assert words in answer.json()["error"], answer.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([[1.0]], "shape [1, 1]"),
        ({"image": [[0.0] * 8] * 8, "imag": 1}, "'imag' is unknown (did you mean 'image'?)"),
        ({"picture": 1}, "'image' is missing in row 0"),
        ([["a"] * 8] * 8, "no array of numbers"),
        ([[1e300] * 8] * 8, "NaN or infinity"),
        ([[None] * 8] * 8, "NaN or infinity"),
    ],
)
def test_a_raw_array_that_does_not_fit_is_a_json_400(row: Any, words: str, digits: Served) -> None:
    answer = digits.post("/predict", json={"rows": [row]})
    assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text


def test_other_models_say_what_they_take_and_an_unknown_version_is_404(digits: Served, tmp_path: Path) -> None:
    with server_process(make_bundle(tmp_path / "bundle")) as address:
        answer = httpx.post(f"http://{address}/predict/image", content=GOOD, trust_env=False)
    assert (answer.status_code, "no transforms of images" in answer.json()["error"]) == (400, True)
    assert digits.post("/predict/image?version=9", content=GOOD).status_code == 404
    assert open_bundle(digits.bundle).transforms()["pixels"]["white"] == 16.0  # type: ignore[index]
