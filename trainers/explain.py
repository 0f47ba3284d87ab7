"""`manta explain SPEC`: the resolved run, before anything runs.

What the check stage says of the columns, every `auto` with its value and reason, the batch equation, updates per epoch,
the learning-rate curve, the memory of one worker. It reads the data as the check stage does, and nothing is written.

Covered: text for people, `--json` for programs. Not covered: durations (they depend on the machine; run one epoch).
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cluster.bundle.signature import TensorSpec
from cluster.cli import runs
from cluster.cli.forward import parse
from cluster.command import run_main
from cluster.pipeline.stage import StageContext
from cluster.probe import host_facts
from cluster.spec.batch_plan import updates_of_epochs
from cluster.spec.resolve import ResolvedRun
from cluster.spec.rules import load_checked
from cluster.spec.run import run_name
from cluster.store.run_folder import RunFolder
from cluster.store.stage_facts import CheckFacts
from cluster.telemetry.events import ListSink, Message
from cluster.temporary import scratch_folder

if TYPE_CHECKING:
    from torch import nn

CURVE_COLUMNS, CURVE_ROWS = 60, 8
TABLE_ROWS_MAX = 100_000  # a table's width is known after encoding: up to this many rows that takes seconds


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code of the error tree."""
    return run_main(_print_explained, arguments)


def _print_explained(arguments: list[str]) -> int:
    options = parse(arguments, runs.explain, module="trainers.explain")
    facts = explain(options.spec, options.override or [])
    text = json.dumps(facts, indent=2, sort_keys=True, default=str) if options.as_json else render(facts)
    sys.stdout.write(text + "\n")
    return 0


def explain(spec_path: Path, overrides: list[str]) -> dict[str, Any]:
    """Everything that is known before a run, JSON-able. Raises MantaError."""
    from trainers.data.stages import check_data

    spec = load_checked(spec_path, overrides)
    with ExitStack() as stack, scratch_folder("explain") as folder:
        name, said = run_name(None, spec, spec_path), ListSink()
        context = StageContext(
            stage="check",
            run=RunFolder(folder / name),
            spec=spec,
            resolved=None,
            host=host_facts(),
            folder=folder,
            digest="",
            records={},
            events=said,
            ensure_ray=partial(_ensure_ray, stack),
        )
        found = check_data(context)
        assert found.resolved is not None
        assert isinstance(found.facts, CheckFacts)
        notes = [event.text for event in said.events if isinstance(event, Message)]
        inputs, resolved = _inputs(context, found.resolved, folder)
    model = _model(resolved, inputs)
    if spec.train.batch_size_per_worker == "auto":
        resolved = _with_micro_batch(resolved, model, inputs)
    if spec.train.find_learning_rate:
        path, rate = "train.optimizer.learning_rate", resolved.spec.train.optimizer.learning_rate
        resolved = resolved.with_values({path: rate}, why="the spec says so, until a range test has run in training")
    return {**_facts(resolved, found.facts, inputs, model), "way": found.details.get("way", ""), "notes": notes}


def _ensure_ray(stack: ExitStack) -> bool:
    """Ray for the functions that make a Ray Dataset; it ends with the explanation. Other sources start none."""
    from trainers.data.ray_data import standing_ray

    stack.enter_context(standing_ray())
    return True


def _with_micro_batch(resolved: ResolvedRun, model: nn.Module | None, inputs: tuple[TensorSpec, ...]) -> ResolvedRun:
    """What the probe at the start of training will find: on a CPU it goes by the same estimate, on a GPU it tries."""
    from trainers.loop.tuner.batch_size_finder import size_by_estimate

    path, workers = "train.batch_size_per_worker", resolved.batch.workers
    if resolved.host.gpus or model is None:
        where = "on the GPU" if resolved.host.gpus else "on the prepared data"
        why = f"{_reason(resolved, path)}; a probe {where} decides when training starts"
        return resolved.with_values({path: resolved.batch.batch_size_per_worker}, why=why)
    stated = resolved.spec.train.memory_per_worker_gib
    budget = int(stated * (1 << 30)) if stated else psutil.virtual_memory().available // workers
    report = size_by_estimate(model, inputs, resolved.spec.train, resolved.batch.smallest_share, budget)
    return resolved.with_values({path: report.rows}, why=report.reason)


def _reason(resolved: ResolvedRun, path: str) -> str:
    return next((reason.reason for reason in resolved.reasons if reason.path == path), "")


def _facts(
    resolved: ResolvedRun, check: CheckFacts, inputs: tuple[TensorSpec, ...], model: nn.Module | None
) -> dict[str, Any]:
    train, batch = resolved.spec.train, resolved.batch
    updates = updates_of_epochs(train, batch.batch_size_global, resolved.data.num_rows_train)
    return {
        "name": resolved.name,
        "reasons": [reason.model_dump(mode="json") for reason in resolved.reasons],
        "data": check.data.model_dump(mode="json"),
        "splits": check.splits,
        "batch": {**batch.model_dump(), "equation": batch.equation(), "updates_of_epochs": list(updates)},
        "learning_rate": _learning_rates(resolved, updates),
        "memory": _memory(resolved, inputs, model),
        "spec": resolved.spec.model_dump(mode="json"),
    }


def _learning_rates(resolved: ResolvedRun, updates: tuple[int, ...]) -> dict[str, Any]:
    """Peak, warm-up and the curve at CURVE_COLUMNS places."""
    from trainers.loop.parts.schedule import learning_rate_factor, peak_learning_rate, settled, warmup_updates

    train, total = resolved.spec.train, sum(updates)
    peak = peak_learning_rate(train.optimizer, resolved.batch.batch_size_global)
    schedule = settled(train.schedule, updates, peak)
    places = [round(i * (total - 1) / (CURVE_COLUMNS - 1)) for i in range(CURVE_COLUMNS)]
    return {
        "peak": peak,
        "warmup_updates": warmup_updates(schedule, total),
        "updates": places,
        "values": [peak * learning_rate_factor(schedule, update, total) for update in places],
    }


def _model(resolved: ResolvedRun, inputs: tuple[TensorSpec, ...]) -> nn.Module | None:
    """None where the model's inputs are not known before preparing."""
    if not inputs:
        return None
    from trainers.models import build_model

    outputs = max(1, resolved.data.num_classes if resolved.data.task == "classification" else 1)
    return build_model(resolved.spec.model, inputs, outputs)


def _memory(resolved: ResolvedRun, inputs: tuple[TensorSpec, ...], model: nn.Module | None) -> dict[str, Any] | None:
    """Bytes of one worker."""
    if model is None:
        return None
    from trainers.loop.tuner.memory_estimate import estimate_memory
    from trainers.models import count_parameters

    micro_size, train = resolved.batch.batch_size_per_worker, resolved.spec.train
    estimate = estimate_memory(model, inputs, micro_size, train, "cuda" if resolved.host.gpus else "cpu")
    return {**asdict(estimate), "total": estimate.total, "num_parameters": count_parameters(model)}


def _inputs(context: StageContext, resolved: ResolvedRun, folder: Path) -> tuple[tuple[TensorSpec, ...], ResolvedRun]:
    """The model's signature, and the run with what preparing decides, for
    which a throw-away folder is prepared."""
    from dataclasses import replace

    from trainers.data.shards import open_prepared
    from trainers.data.stages import prepare_data

    if resolved.data.num_rows > TABLE_ROWS_MAX:
        path, why = "data.target_transform", "the prepare stage compares transforms on validation rows"
        undecided = resolved.spec.data.target_transform == "auto"
        return (), resolved.with_found({path: ("auto", why)}) if undecided else resolved
    target = folder / "prepared"
    target.mkdir()
    done = prepare_data(replace(context, stage="prepare", resolved=resolved, folder=target))
    return open_prepared(target).inputs, done.facts.changes(resolved, done.details)


def render(facts: dict[str, Any]) -> str:
    """For people."""
    batch, rate = facts["batch"], facts["learning_rate"]
    data, splits = facts["data"], facts["splits"]
    lines = [f"Run '{facts['name']}'", ""]
    lines.append("Data")
    shape = f", rows of shape {data['item_shape']}" if data["item_shape"] else ""
    classes = f", {data['num_classes']} classes" if data["num_classes"] else ""
    lines.append(f"  {data['task']} on {data['num_rows']:,} rows ({data['layout']}{shape}{classes})")
    lines.append("  " + ", ".join(f"{rows:,} {name}" for name, rows in splits.items()))
    lines += [f"  prepared {facts['way']}"] if facts.get("way") else []
    lines += [f"  {note}" for note in facts.get("notes", [])]
    lines += ["", "What `auto` became"]
    width = max((len(reason["path"]) for reason in facts["reasons"]), default=0)
    lines += [f"  {r['path']:<{width}}  {r['value']}, because {r['reason']}" for r in facts["reasons"]] or ["  nothing"]
    lines += ["", "Batches", f"  {batch['equation']}"]
    epochs, updates = len(batch["updates_of_epochs"]), batch["updates_of_epochs"]
    each = f"{updates[0]}" if len(set(updates)) == 1 else f"{updates[0]} to {updates[-1]}"
    lines.append(f"  {each} updates an epoch, {epochs} epochs, {sum(updates):,} updates")
    lines += ["", f"Learning rate: peak {rate['peak']:.3g} after {rate['warmup_updates']} updates"]
    lines += [f"  {line}" for line in plot(rate["values"], rate["updates"][-1])]
    lines += ["", "Memory of one worker", *_memory_lines(facts["memory"])]
    return "\n".join(lines)


def plot(values: list[float], last_update: int) -> list[str]:
    """An ASCII curve with its axis."""
    top = max(values)
    heights = [round(value / top * CURVE_ROWS) for value in values]
    rows = []
    for level in range(CURVE_ROWS, 0, -1):
        label = f"{top * level / CURVE_ROWS:8.2g}" if level in (CURVE_ROWS, CURVE_ROWS // 2) else " " * 8
        rows.append(label + " |" + "".join("#" if height >= level else " " for height in heights).rstrip())
    rows.append(" " * 8 + " +" + "-" * len(values))
    rows.append(" " * 10 + "0" + f"{last_update:>{len(values) - 1}} update")
    return rows


def _memory_lines(memory: dict[str, Any] | None) -> list[str]:
    if memory is None:
        return ["  not known before the data is prepared"]
    parts = ["parameters", "gradients", "optimizer", "ema", "activations", "transient", "batch"]
    lines = [f"  {name:<12}{megabytes(memory[name])}" for name in parts if memory[name]]
    lines.append(f"  {'total':<12}{megabytes(memory['total'])}  for {memory['num_parameters']:,} parameters")
    return lines


def megabytes(count: int) -> str:
    return f"{count / (1 << 20):10.2f} MiB"


if __name__ == "__main__":
    sys.exit(main())
