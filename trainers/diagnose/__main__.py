"""`python -m trainers.diagnose RUN`: what a run's curves mean; `--apply OUT.yaml` writes the spec with the remedies."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.atomic import write_text
from cluster.cli.forward import parse
from cluster.cli.runs import diagnose as diagnose_verb
from cluster.command import run_main
from cluster.errors import RequestError
from cluster.spec.load import load_spec, set_path, validate_spec
from cluster.spec.run import RunSpec
from cluster.store.run_folder import RunFolder, find_run
from cluster.store.stage_facts import EvaluateFacts
from cluster.telemetry.events import read_events
from trainers.data.shards import open_prepared
from trainers.diagnose.findings import Finding, diagnose
from trainers.diagnose.reference import reference_of
from trainers.diagnose.remedies import Measured, changes_of, measure, winner


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code of the error tree."""
    return run_main(_print_findings, arguments)


def _print_findings(arguments: list[str]) -> int:
    options = parse(arguments, diagnose_verb, module="trainers.diagnose")
    run = find_run(options.runs_dir, options.run)
    findings = findings_of_run(run)
    if options.apply:
        findings, lines = measured_findings(run, findings)
        apply_findings(run, findings, options.apply)
        for line in lines:
            sys.stderr.write(f"{line}\n")
    if options.as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.write(render(findings) + "\n")
    return 0


def findings_of_run(run: RunFolder) -> list[Finding]:
    """Of a run that has trained. Raises RequestError for one that has not."""
    resolved = run.read_resolved()
    if resolved is None or not run.events.exists():
        raise RequestError(
            f"Cannot diagnose {run.path}",
            found="it has no resolved.yaml or no events.jsonl",
            remedy="Name the folder of a run that has trained.",
        )
    prepared = run.stage("prepare")
    data = open_prepared(prepared) if prepared.is_dir() else None
    facts = EvaluateFacts.of(run.records())
    return diagnose(read_events(run.events), resolved.spec, reference=reference_of(data, facts))


def measured_findings(run: RunFolder, findings: list[Finding]) -> tuple[list[Finding], list[str]]:
    """Findings with the change that won in short trainings, where they propose several; a line for each training."""
    resolved, prepared = run.read_resolved(), run.stage("prepare")
    if resolved is None or not prepared.is_dir():
        return findings, []
    kept, lines = [], []
    for finding in findings:
        changes = changes_of(finding)
        if len(changes) > 1:
            measured = measure(resolved, prepared, changes)
            best = winner(resolved, measured)
            lines += [_measured_line(resolved.spec.train.best.metric, one, best) for one in measured]
            finding = replace(finding, change=best.change)
        kept.append(finding)
    return kept, lines


def _measured_line(metric: str, one: Measured, best: Measured) -> str:
    named = ", ".join(f"{path}={json.dumps(value)}" for path, value in one.change.items()) or "as it is"
    reached = "diverged" if one.value is None else f"{metric} {one.value:.4g}"
    return f"{named}: {reached} in a short training{' (kept)' if one is best else ''}"


def apply_findings(run: RunFolder, findings: list[Finding], target: Path) -> RunSpec:
    """Write the run's spec with all changes to `target`; of two changes of one value the first holds."""
    raw: dict[str, Any] = load_spec(run.path / "spec.yaml").model_dump(mode="json", exclude_unset=True)
    done: set[str] = set()
    resolved = run.read_resolved()
    for finding in findings:
        for path, value in finding.change.items():
            if path.startswith("model.") and resolved is not None:  # its keys are the family's, which may be auto
                set_path(raw, ["model", "family"], resolved.spec.model.family)
            if path not in done:
                set_path(raw, path.split("."), value)
                done.add(path)
    spec = validate_spec(raw, origin=str(target))
    write_text(target, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    return spec


def render(findings: list[Finding]) -> str:
    """For people."""
    if not findings:
        return "Nothing stands out in this run's curves."
    lines = []
    for finding in findings:
        lines.append(f"- {finding.text}")
        lines += [f"    try --set {path}={json.dumps(value)}" for path, value in finding.change.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
