"""Which stages must run: digests of their inputs against the records on disk.

Invariant: pure but for reading records. A stage is reused exactly when its record names the same inputs' digest and
every file it lists is still there with the same hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.atomic import digest_json, hash_tree
from cluster.errors import RequestError
from cluster.pipeline.stages import STAGES, Stage
from cluster.spec.resume_rules import without_neutral
from cluster.spec.run import RunSpec
from cluster.store.run_folder import RECORD, RunFolder, StageRecord

STAGE_FORMAT = 1  # raise it when a stage's files or facts change meaning: old records are then not reused
OUTPUT_PREFIX = "../../"  # from stages/<name>/ to the run's folder
DIGEST_FILE = "inputs.digest"  # in a partial folder: says whose work it holds


def stages_until(last: str | None) -> tuple[Stage, ...]:
    """The pipeline up to and including `last`, or all of it. Raises RequestError for an unknown stage."""
    if last is None:
        return STAGES
    names = [stage.name for stage in STAGES]
    if last not in names:
        raise RequestError(
            f"Cannot run until stage {last!r}", found="there is no such stage", remedy=f"Stages: {', '.join(names)}."
        )
    return STAGES[: names.index(last) + 1]


def stage_digest(stage: Stage, spec: RunSpec, records: Mapping[str, StageRecord]) -> str:
    """sha256 over everything that can change the stage's result."""
    sections = spec.model_dump(mode="json", include=set(stage.sections))
    if "train" in sections:
        sections["train"] = without_neutral(spec.train)
    return digest_json(
        {
            "stage": stage.name,
            "format": STAGE_FORMAT,
            "sections": sections,
            "inputs": {need: records[need].output_digest for need in stage.needs if need in records},
        }
    )


def is_skipped(stage: Stage, spec: RunSpec) -> bool:
    """Whether the spec's section for this stage is null."""
    return stage.skip_without is not None and getattr(spec, stage.skip_without) is None


def reusable(stage: Stage, run: RunFolder, digest: str) -> tuple[StageRecord | None, str]:
    """The record to reuse, or None with a reason worth telling ('' where there is none)."""
    if stage.always:
        return None, ""
    record = run.record(stage.name)
    if record is None:
        unreadable = (run.stage(stage.name) / RECORD).exists()
        return None, "its record cannot be read" if unreadable else ""
    if record.inputs_digest != digest:
        return None, "its inputs have changed"
    if damaged := run.damaged_files(stage.name, record):
        return None, f"{', '.join(damaged[:3])} changed on disk since the stage wrote it"
    return record, ""


def output_hashes(stage: Stage, run: RunFolder, folder: Any) -> dict[str, str]:
    """Hashes of a stage's own files and of the run's folders that it fills."""
    hashes = hash_tree(folder, exclude=frozenset({RECORD, DIGEST_FILE}))
    for output in stage.outputs:
        for name, digest in hash_tree(run.path / output).items():
            hashes[f"{OUTPUT_PREFIX}{output}/{name}"] = digest
    return hashes
