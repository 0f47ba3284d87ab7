"""`python -m trainers.loop RUN`: train what a run has prepared, without Ray. To measure and to debug the loop alone.

    python -m trainers.loop runs/digits                        one process
    torchrun --nproc-per-node 2 -m trainers.loop runs/digits   data-parallel

Reads `resolved.yaml` and `stages/prepare` of the run folder, writes weights, history and checkpoints into --out, and
prints one JSON object. The run folder itself is not touched.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from cluster.command import run_main
from cluster.errors import RequestError
from cluster.spec.batch_plan import BatchPlan
from cluster.spec.load import apply_overrides
from cluster.spec.resolve import resolve
from cluster.spec.rules import validate_checked
from cluster.spec.train import TrainSpec
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import FileSink, ListSink
from trainers.data.shards import open_prepared
from trainers.loop import FitRequest, FitResult, fit
from trainers.loop.distributed.world import current_world
from trainers.loop.parts.deterministic import prepare_process
from trainers.loop.request import SizingRequest
from trainers.loop.result import write_result
from trainers.loop.setup import default_device, set_up
from trainers.loop.tuner.batch_size_finder import SizeReport, probe_micro_batch
from trainers.loop.tuner.learning_rate_finder import RangeReport, range_test


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code of the error tree."""
    return run_main(_train, arguments)


def _train(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    profile = [f"train.profile_updates={options.profile}"] if options.profile else []
    request = request_of_run(RunFolder(options.run), [*options.set, *profile], options.out)
    prepare_process(request.train)
    _join_group(request.train.faults.collective_timeout_s)
    try:
        if options.find:
            return _find(options.find, request)
        result = fit(request, sink=FileSink(options.out / "events.jsonl"), device=default_device())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if int(os.environ.get("RANK", "0")) == 0:
        sys.stdout.write(json.dumps(_summary(result)) + "\n")
        write_result(options.out, result)
    return 0


def request_of_run(run: RunFolder, overrides: list[str], out: Path) -> FitRequest:
    """The training of a prepared run, with overrides. Raises RequestError for a run that has prepared nothing."""
    resolved = run.read_resolved()
    prepared = run.stage("prepare")
    if resolved is None or not prepared.is_dir():
        raise RequestError(
            f"Cannot train {run.path}",
            found="it has no resolved.yaml or no stages/prepare",
            remedy="Prepare it first: manta run SPEC --until prepare.",
        )
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    raw = apply_overrides(resolved.spec.model_dump(mode="json"), [*overrides, f"train.workers={workers}"])
    asked = validate_checked(raw, origin=str(run.resolved_path))
    spec = resolve(asked, name=run.name, host=resolved.host, data=resolved.data).spec
    rows = len(open_prepared(prepared).splits["train"])
    out.mkdir(parents=True, exist_ok=True)
    probed = asked.train.batch_size_per_worker == "auto"
    return FitRequest(
        train=spec.train,
        batch=BatchPlan.of(spec.train, rows),
        sizing=SizingRequest(_budget_bytes(spec.train), out / "sizing") if probed else None,
        model=spec.model,
        seed=spec.seed,
        prepared=prepared,
        stage="train",
        checkpoints=out / "checkpoints",
        traces=out,
    )


def _budget_bytes(train: TrainSpec) -> int | None:
    budget = train.memory_per_worker_gib
    return None if budget is None else int(budget * (1 << 30))


def _find(what: str, request: FitRequest) -> int:
    """Print what a probe found; nothing is trained."""
    job, state = set_up(request, ListSink(), default_device())
    if what == "batch":
        available = psutil.virtual_memory().available // max(1, job.world.size)
        report: SizeReport | RangeReport = probe_micro_batch(job, state, budget_bytes=available)
    else:
        report = range_test(job, state)
    if job.world.rank == 0:
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainers.loop", description="Train a prepared run without Ray.")
    parser.add_argument("run", type=Path, help="run folder with resolved.yaml and stages/prepare")
    parser.add_argument("--out", type=Path, default=Path("loop-out"), help="folder for weights and checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="trace N updates into OUT/trace-RANK.json")
    parser.add_argument("--find", choices=["batch", "lr"], help="only probe the micro-batch or the learning rate")
    parser.add_argument("--threads", type=int, default=0, help="torch threads of each process")
    return parser


def _join_group(timeout_s: float) -> None:
    """Under torchrun, which sets RANK and its companions."""
    if "RANK" in os.environ and current_world().size == 1:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def _summary(result: FitResult) -> dict[str, object]:
    return {
        "metrics": result.metrics,
        "best_epoch": result.best_epoch,
        "updates": result.updates,
        "num_parameters": result.num_parameters,
        **result.details,
    }


if __name__ == "__main__":
    sys.exit(main())
