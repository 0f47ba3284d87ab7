"""Our loop against a hand-written one: eager and compiled, channels_last for images. Both sides in this process, in
alternating pieces of about a second; the ratio is the median over the pairs, above 1 ours is faster.

The eager pairs come first: compiling takes up to a minute, and a step that is cut then has something.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.gpu.findings import Context, Findings
from benchmarks.training_gpu.loops import Case, our_update, update_by_hand, wait_for, write_rows
from benchmarks.training_gpu.run import CASES, DRY, GOAL

ROWS_PER_BATCH = 4  # batches in memory: enough that a host's caches hold none of them
PIECE_S, PAIRS, WARM_UP = 1.0, 7, 5
EAGER_SHARE = 0.35  # of the time, at most
Update = Callable[[], None]


def run(context: Context, findings: Findings) -> None:
    (name,) = context.arguments
    if context.dry and name not in DRY:
        findings.skip(name, "the dry run has one case of each network")
        return
    case = DRY[name] if context.dry else CASES[name]
    started = time.monotonic()
    prepared = context.work / f"training_{case.network}"
    if not (prepared / "dataset.json").exists():  # the other precision's step has written the same rows
        write_rows(prepared, case, ROWS_PER_BATCH * case.batch)
    findings.put("rows", seconds=round(time.monotonic() - started, 1), batch=case.batch)
    left_s = context.left_s()
    _compare("eager", case, context, findings, context.until_s - (1 - EAGER_SHARE) * left_s)
    compiled = replace(case, compile=not context.dry or not case.images)  # dry: one of the two networks
    if context.dry:
        from trainers.loop import setup

        setup.COMPILE_BACKEND = "eager"
    torch.cuda.empty_cache()
    _compare("compiled", compiled, context, findings, context.until_s)


def _compare(name: str, case: Case, context: Context, findings: Findings, until_s: float) -> None:
    device, prepared = torch.device(context.device), context.work / f"training_{case.network}"
    sides: dict[str, Update] = {}
    for side, make in (("ours", our_update), ("by_hand", update_by_hand)):
        held = _reset_peak(device)
        started = time.monotonic()
        sides[side] = make(case, prepared, device)
        for _ in range(1 if context.dry else WARM_UP):
            sides[side]()
        wait_for(device)
        facts = {f"{side}_ready_s": time.monotonic() - started, f"{side}_peak_mib": _peak_mib(device, held)}
        findings.put(name, **{key: round(value, 1) for key, value in facts.items()})
    updates = 1 if context.dry else max(2, round(PIECE_S / _seconds(sides["by_hand"], 3, device) * 3))
    speeds: dict[str, list[float]] = {"ours": [], "by_hand": []}
    for pair in range(1 if context.dry else PAIRS):
        if pair and time.monotonic() > until_s:
            break
        for side in ("ours", "by_hand") if pair % 2 == 0 else ("by_hand", "ours"):
            speeds[side].append(updates * case.batch / _seconds(sides[side], updates, device))
        ratios = [a / b for a, b in zip(speeds["ours"], speeds["by_hand"], strict=True)]
        ratio = statistics.median(ratios)
        figures = {f"{side}_rows_per_s": round(statistics.median(values), 1) for side, values in speeds.items()}
        verdict = {} if context.dry else {"ok": ratio >= GOAL, "goal": GOAL}
        findings.put(name, ratio=round(ratio, 4), ratios=[round(one, 4) for one in ratios], **figures, **verdict)


def _seconds(update: Update, times: int, device: torch.device) -> float:
    wait_for(device)
    started = time.perf_counter()
    for _ in range(times):
        update()
    wait_for(device)
    return time.perf_counter() - started


def _reset_peak(device: torch.device) -> int:
    """Bytes that are held already: by the other side."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_mib(device: torch.device, held: int) -> float:
    return (torch.cuda.max_memory_allocated(device) - held) / (1 << 20) if device.type == "cuda" else 0.0
