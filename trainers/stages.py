"""Stage name -> function: read this first.

Each function takes a `StageContext` (cluster/pipeline/stage.py) and returns a `StageResult`. The work lies in the
room that the import names; imports are inside, so that a stage loads only what it needs.
"""

from __future__ import annotations

from cluster.pipeline.stage import StageContext, StageResult


def check(context: StageContext) -> StageResult:
    """Look at the data without preparing it, and decide every `auto`."""
    from cluster.spec.rules import check_spec
    from trainers.data.stages import check_data

    check_spec(context.spec)  # what needs no data is told before any is read
    return check_data(context)


def prepare(context: StageContext) -> StageResult:
    """Source -> splits, fitted transforms, shards."""
    from trainers.data.stages import prepare_data

    return prepare_data(context)


def search(context: StageContext) -> StageResult:
    """Ray Tune over the search space; the best values go into the resolved run."""
    from trainers.search.stage import run_search

    return run_search(context)


def train(context: StageContext) -> StageResult:
    """Ray Train over the workers; weights, history and checkpoints."""
    from trainers.launch.stage import run_training

    return run_training(context)


def evaluate(context: StageContext) -> StageResult:
    """Metrics on the test split, which nothing before this has read."""
    from trainers.evaluate.stage import run_evaluation

    return run_evaluation(context)


def compress(context: StageContext) -> StageResult:
    """Float graph -> candidates -> the gate accepts or rejects each."""
    from trainers.compress.stage import run_compression

    return run_compression(context)


def export(context: StageContext) -> StageResult:
    """Prove parity with torch and pack the bundle."""
    from trainers.export.stage import run_export

    return run_export(context)
