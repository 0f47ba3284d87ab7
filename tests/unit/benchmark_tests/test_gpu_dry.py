"""What runs on a GPU elsewhere, run here on a CPU with tiny networks: the code is known to work up to the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.training_gpu import run
from benchmarks.training_gpu.loops import Case, by_hand, ours, request_of, write_rows
from cluster.telemetry.events import ListSink
from trainers.loop.loop import remaining_windows
from trainers.loop.setup import set_up
from trainers.loop.step import finish_update, start_update

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", run.DRY.values(), ids=run.DRY)
def test_both_sides_of_the_gpu_benchmark_run(case: Case, tmp_path: Path) -> None:
    prepared = write_rows(tmp_path, case, 3 * case.batch)
    assert ours(case, prepared, CPU, 1, 1) > 0
    assert by_hand(case, prepared, CPU, 1, 1) > 0
    found = run.probe(case, prepared, CPU)
    assert found["rows"] <= found["fitting"] == 2 * case.batch


def test_the_gpu_benchmark_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert run.main([]) == 3
    assert "no CUDA GPU" in capsys.readouterr().err


def test_the_hand_written_loop_trains_what_ours_does(tmp_path: Path) -> None:
    """Else their speeds could not be compared: the same loss after the same updates of the same rows."""
    case = Case("resnet50", "fp32", 4, scale=8)
    prepared = write_rows(tmp_path, case, 4)
    job, state = set_up(request_of(case, prepared), ListSink(), CPU)
    state.deferred = True
    reports = []
    for _ in range(2):
        state.cursor.window = 0
        reports += start_update(job, state, next(remaining_windows(job, state)))
    first, second = (report.loss_sum / report.weight for report in [*reports, *finish_update(job, state)])
    from torch.nn import functional as F

    from benchmarks.training_gpu import networks
    from trainers.data.shards import open_prepared

    torch.manual_seed(7)
    model = networks.build_resnet50(8).to(memory_format=torch.channels_last).train()
    split = open_prepared(prepared).splits["train"]
    x, y = (torch.tensor(split.inputs["x"][:]), torch.tensor(split.targets[:]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert first == pytest.approx(losses[0], rel=1e-3)
    assert second == pytest.approx(losses[1], rel=1e-2), "Adam's first step makes rounding of small gradients visible"


def test_the_real_sizes_are_the_papers() -> None:
    from benchmarks.training_gpu import networks

    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in getattr(networks, f"build_{name}")().parameters()) for name in NAMES}
    assert counts["resnet50"] == 25_557_032, "torchvision's resnet50"
    assert counts["bert_base"] == pytest.approx(109e6, rel=0.01)


NAMES = ("resnet50", "bert_base")
