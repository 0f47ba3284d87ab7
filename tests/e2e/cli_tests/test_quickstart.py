"""The main job by one command: raw digits to an endpoint that answers over HTTP, and back to nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from cluster.bundle import open_bundle
from cluster.pipeline.stages import STAGES
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EndpointReady, EpochFinished, TrialUpdated, read_events
from tests.bundles import softmax
from tests.e2e.conftest import KeptRun, call_manta
from trainers.data.shards import open_prepared

ACCURACY_MIN = 0.975


def test_every_stage_ran_and_the_model_is_good(quickstart: KeptRun) -> None:
    assert quickstart.summary["ok"] is True
    assert list(quickstart.summary["stages"]) == [stage.name for stage in STAGES]
    assert quickstart.summary["metrics"]["accuracy"] >= ACCURACY_MIN


def test_the_endpoint_answers_real_images_with_the_bundles_own_answers(quickstart: KeptRun) -> None:
    endpoint = quickstart.summary["endpoint"]
    url, name = endpoint["url"], endpoint["name"]
    bundle = open_bundle(quickstart.folder / "bundle")
    assert httpx.get(f"{url}/v2/health/ready").status_code == 200
    metadata = httpx.get(f"{url}/v2/models/{name}").json()
    (tensor,) = bundle.manifest.signature.inputs
    assert metadata["inputs"][0]["name"] == tensor.name
    sample = bundle.sample()
    rows = sample[f"inputs/{tensor.name}"]
    body = {
        "inputs": [{"name": tensor.name, "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]
    }
    answer = httpx.post(f"{url}/v2/models/{name}/infer", json=body).json()
    output = answer["outputs"][0]
    got = np.array(output["data"]).reshape(output["shape"])
    want = sample[f"outputs/{bundle.manifest.default_variant}/{output['name']}"]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_raw_digits_and_an_image_file_have_the_probabilities_of_the_pipeline(
    quickstart: KeptRun, tmp_path: Path
) -> None:
    """Raw values 0..16 and a PNG, against the split's own tensor through the bundle's ONNX file."""
    url, bundle = quickstart.summary["endpoint"]["url"], open_bundle(quickstart.folder / "bundle")
    prepared = open_prepared(quickstart.folder / "stages" / "prepare")
    rows = prepared.splits["test"].inputs["image"][:8]
    facts = prepared.facts
    raw = rows.astype(np.float64) * facts["deviation"][0] + facts["mean"][0]
    expected = softmax(bundle.path(bundle.variant().file), rows)
    answers = [httpx.post(f"{url}/predict", json={"rows": [{"image": row.tolist()} for row in raw]}).json()]
    files = [tmp_path / f"{index}.png" for index in range(len(raw))]
    for path, row in zip(files, raw, strict=True):
        Image.fromarray(np.round(row[0] * 255 / 16).astype(np.uint8)).save(path)
    answers.append(httpx.post(f"{url}/predict/image", files=[("file", path.read_bytes()) for path in files]).json())
    for answer, tolerance in zip(answers, (1e-5, 0.05), strict=True):  # a PNG rounds a value 0..16 to a 255th
        found = np.array([list(one["probabilities"].values()) for one in answer["predictions"]])
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
    done = call_manta("predict", quickstart.summary["endpoint"]["name"], str(files[0]), "--json", cwd=quickstart.cwd)
    assert done.json["predictions"] == answers[1]["predictions"][:1]


def test_the_printed_curl_body_is_accepted(quickstart: KeptRun) -> None:
    curl = quickstart.summary["endpoint"]["curl"]
    match = re.fullmatch(r"curl -s (\S+) -d @(\S+)", curl)
    assert match
    answer = httpx.post(match[1], content=(quickstart.cwd / match[2]).read_bytes())
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["label"] in map(str, range(10))
    assert match[1].endswith("/predict")
    (row,) = json.loads((quickstart.cwd / match[2]).read_text())["rows"]
    assert np.array(row).shape == (1, 8, 8)
    assert set(np.array(row).ravel().tolist()) <= set(range(17)), "the pixels of the source, 0 to 16"


def test_the_endpoint_was_checked_with_test_rows(quickstart: KeptRun) -> None:
    check = quickstart.summary["endpoint_check"]
    assert check["rows"] > 100
    assert check["accuracy"] >= ACCURACY_MIN - 0.02
    assert 0 < quickstart.summary["latency"]["latency_ms_p50"] <= quickstart.summary["latency"]["latency_ms_p99"]


def test_the_event_stream_has_trials_epochs_and_the_endpoint(quickstart: KeptRun) -> None:
    events = read_events(quickstart.folder / "events.jsonl")
    assert {event.trial for event in events if isinstance(event, TrialUpdated) and event.stage == "search"}
    assert [event for event in events if isinstance(event, EpochFinished) and event.stage == "train"]
    assert [event for event in events if isinstance(event, EndpointReady)]


def test_json_output_is_one_object_and_the_rest_is_on_stderr(quickstart: KeptRun) -> None:
    assert "train" in quickstart.stderr
    assert "{" not in quickstart.stderr.splitlines()[0]
    assert "Warning" not in quickstart.stderr


def test_the_report_is_self_contained(quickstart: KeptRun) -> None:
    html = (quickstart.folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in html
    loads = re.findall(r'(?:src|href)="(?!#|data:)([^"]+)"|url\((?!["\']?(?:data:|#))([^)]+)\)|@import', html)
    assert loads == []


def test_runs_show_and_bundle_verbs_tell_of_it(quickstart: KeptRun) -> None:
    (row,) = call_manta("runs", "--json", cwd=quickstart.cwd).json
    assert row["run"] == "quickstart"
    assert row["state"] == "serving"
    shown = call_manta("show", "quickstart", "--json", cwd=quickstart.cwd).json
    assert shown["endpoint"]["url"] == quickstart.summary["endpoint"]["url"]
    assert call_manta("bundle", "verify", "runs/quickstart/bundle", cwd=quickstart.cwd).code == 0
    manifest = call_manta("bundle", "show", "runs/quickstart/bundle", "--json", cwd=quickstart.cwd).json
    assert manifest["source"]["run"] == "quickstart"


def test_a_run_that_is_being_worked_on_cannot_be_started_again(quickstart: KeptRun) -> None:
    done = call_manta("run", "configs/quickstart.yaml", cwd=quickstart.cwd)
    assert done.code == 2
    assert "manta stop quickstart" in done.stderr


def test_no_pickle_lies_in_the_bundle(quickstart: KeptRun) -> None:
    allowed = {".json", ".onnx", ".safetensors", ".npz"}
    files = [path for path in (quickstart.folder / "bundle").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= allowed
    with np.load(quickstart.folder / "bundle" / "sample.npz", allow_pickle=False) as arrays:
        assert arrays.files


def test_resolved_spec_has_no_auto(quickstart: KeptRun) -> None:
    text = (quickstart.folder / "resolved.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(?<!family): auto$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def one_row(quickstart: KeptRun) -> bytes:
    return json.dumps(json.loads((quickstart.folder / "request.json").read_text())).encode()


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v2/models/none/infer", b"{}", 404),
        ("/v2/models/digits/infer", b"not json", 400),
        ("/v2/models/digits/infer", b'{"inputs": []}', 400),
        (
            "/v2/models/digits/infer",
            b'{"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [1]}]}',
            400,
        ),
        ("/nothing", b"", 404),
    ],
)
def test_wrong_requests_get_a_json_error(quickstart: KeptRun, path: str, body: bytes, code: int) -> None:
    answer = httpx.post(quickstart.summary["endpoint"]["url"] + path, content=body)
    assert answer.status_code == code, answer.text
    assert answer.json()["error"]


def test_bundle_folder_is_named_in_the_summary(quickstart: KeptRun) -> None:
    assert Path(quickstart.summary["bundle"]) == quickstart.folder / "bundle"
    assert quickstart.summary["size_after_bytes"] < quickstart.summary["size_before_bytes"]


def test_a_kept_run_ends_when_its_endpoint_is_taken_away(quickstart: KeptRun) -> None:
    """The last test of this file: nothing answers after it."""
    url = quickstart.summary["endpoint"]["url"]
    listed = call_manta("endpoints", "--json", cwd=quickstart.cwd).json["endpoints"]
    assert [entry["name"] for entry in listed if entry["url"] == url] == ["digits"]
    driver = psutil.Process(RunFolder(quickstart.folder).read_state()["pid"])
    gone = call_manta("undeploy", "digits", "--json", cwd=quickstart.cwd)
    assert gone.code == 0, gone.stderr
    assert url not in [
        entry["url"] for entry in call_manta("endpoints", "--json", cwd=quickstart.cwd).json["endpoints"]
    ]
    driver.wait(60)
    assert RunFolder(quickstart.folder).read_state()["state"] == "done"
