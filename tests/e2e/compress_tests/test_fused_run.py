"""`manta run` with `export.fuse`: from raw digits to an endpoint whose graph standardizes, softmaxes and names classes.

The quickstart's config without its search, on one worker; the endpoint serves the INT8 form if the gate accepts it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.bundle.files import open_bundle
from tests.e2e.conftest import ROOT, call_manta

PARTS = ["normalize", "softmax", "labels"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fused_network_goes_from_raw_data_to_an_endpoint_that_is_right(tmp_path: Path) -> None:
    values = {
        "search": "null",
        "train.epochs": "3",
        "train.workers": "1",
        "train.batch_size_global": "32",
        "export.fuse": f"[{', '.join(PARTS)}]",
    }
    flags = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    done = call_manta("run", str(ROOT / "configs" / "quickstart.yaml"), "--json", *flags, cwd=tmp_path, timeout_s=280)
    assert done.code == 0, done.stderr
    run = tmp_path / "runs" / "quickstart"
    served = json.loads((run / "stages" / "predict" / "record.json").read_text())["facts"]
    tested = json.loads((run / "stages" / "evaluate" / "record.json").read_text())["facts"]["metrics"]
    assert served["rows"] == 359
    assert served["accuracy"] == pytest.approx(tested["accuracy"], abs=0.03)  # standardized once, not twice
    bundle = open_bundle(run / "bundle")
    assert bundle.manifest.source["fused"] == PARTS
    sample = bundle.sample()
    for variant in bundle.manifest.variants:
        best = sample[f"outputs/{variant.name}/logits"].argmax(1)
        assert [label.decode() for label in sample[f"outputs/{variant.name}/label"]] == [str(one) for one in best]
        np.testing.assert_allclose(sample[f"outputs/{variant.name}/probabilities"].sum(1), 1.0, rtol=1e-5)
