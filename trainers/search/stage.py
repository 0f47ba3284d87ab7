"""The search stage: spec and prepared data -> the best values, with every trial on record.

Files: `trials.json` (all trials with values, epochs, states). Facts: `best`, `metrics`, `trials`.

Invariant: the user's own configuration is always trial 0, so a search never ends with less than what was written;
trials that ended before an interruption are not run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cluster.atomic import write_json
from cluster.errors import RunError
from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.resolve import HostFacts, ResolvedRun
from cluster.spec.search import SearchSpec
from cluster.telemetry.events import EventSink, Message, TrialUpdated
from trainers.search.journal import Journal, Trial, TrialState, read_journal
from trainers.search.space import check_search, current_point, distributions, trial_epochs
from trainers.search.study import Study, StudySettings, rungs_of
from trainers.search.trial import TrialSetup

JOURNAL = "journal.jsonl"
TRIALS = "trials.json"
SHOWN_STATES: dict[TrialState, Literal["running", "done", "stopped", "failed", "rejected"]] = {
    "running": "running",
    "done": "done",
    "stopped": "stopped",
    "diverged": "rejected",
    "oom": "rejected",
    "failed": "failed",
}


def run_search(context: StageContext) -> StageResult:
    """Run the search. Raises RunError when no trial ended well."""
    resolved = context.run_resolved
    search = resolved.spec.search
    if search is None:
        return StageResult(status="skipped", headline="no search asked")
    check_search(resolved.spec)
    journal = context.folder / JOURNAL
    study = open_study(resolved, search, journal)
    done = sum(trial.ended for trial in study.trials)
    if done:
        context.events.emit(
            Message(stage=context.stage, text=f"{done} of {search.trials} trials ended before; they are not run again")
        )
    setup = TrialSetup(
        resolved=resolved,
        prepared=context.files("prepare").resolve(),
        metric=search.metric,
        epochs=trial_epochs(resolved.spec, search),
    )
    _run_trials(context, study, setup, search.trials - done)
    result = search_result(study, resolved, search)
    write_json(context.folder / TRIALS, trial_table(study))
    journal.unlink(missing_ok=True)  # trials.json says the same, without the order of arrival
    return result


def open_study(resolved: ResolvedRun, search: SearchSpec, journal: Path | None) -> Study:
    """A study over the spec's space, with what the journal remembers."""
    space = distributions(search)
    epochs = trial_epochs(resolved.spec, search)
    settings = StudySettings(
        space=space,
        mode=search.mode,
        seed=search.seed,
        rungs=rungs_of(epochs, search.grace_epochs, search.reduction_factor, early_stopping=search.scheduler != "none"),
        start=(("current", current_point(resolved.spec, search)),),
    )
    study = Study(settings, Journal(journal))
    if journal is not None:
        study.replay(read_journal(journal))
    return study


def trial_concurrency(search: SearchSpec, host: HostFacts) -> int:
    """Trials at a time: one a GPU, else one a CPU core; more would wait for each other."""
    most = len(host.gpus) or host.cpu_cores
    wanted = most if search.concurrency == "auto" else search.concurrency
    return max(1, min(wanted, search.trials))


def search_result(study: Study, resolved: ResolvedRun, search: SearchSpec) -> StageResult:
    """The winner as facts and as the run that training goes on with."""
    best = study.best()
    if best is None:
        notes = {trial.note for trial in study.trials if trial.note}
        raise RunError(
            "Cannot choose the best trial",
            found=f"none of {len(study.trials)} trials ended with a finite {search.metric}: "
            + "; ".join(sorted(notes)[:3]),
            remedy="Lower the learning rates or batch sizes in search.space, or set search: null.",
        )
    epoch = best.metrics.get(study.best_epoch(best), {})
    states = [trial.state for trial in study.trials]
    ends = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    values = ", ".join(f"{path.split('.')[-1]} {_short(value)}" for path, value in best.values.items())
    return StageResult(
        facts={"best": best.values, "metrics": epoch, "trials": len(study.trials), "best_trial": best.number},
        headline=f"{values} ({search.metric} {study.best_value(best):.4g}); {ends}",
        resolved=resolved.with_values(best.values),
    )


def trial_table(study: Study) -> list[dict[str, Any]]:
    """All trials for `trials.json`, the report and people."""
    return [
        {
            "trial": trial.number,
            "values": trial.values,
            "source": trial.source,
            "state": trial.state,
            "note": trial.note,
            "epochs": trial.epochs,
            "value": study.best_value(trial) if trial.reports else None,
            "reports": {str(epoch): value for epoch, value in sorted(trial.reports.items())},
        }
        for trial in study.trials
    ]


def trial_event(stage: str, metric: str, trial: Trial) -> TrialUpdated:
    """A trial as the display and the report see it."""
    metrics = dict(trial.metrics.get(trial.epochs, {}))
    if trial.reports:
        metrics |= {metric: trial.reports[trial.epochs], "epoch": float(trial.epochs)}
    note = trial.note or (f"{trial.source}" if trial.state == "running" else "")
    return TrialUpdated(
        stage=stage,
        trial=str(trial.number),
        state=SHOWN_STATES[trial.state],
        parameters=trial.values,
        metrics=metrics,
        note=note,
    )


def _run_trials(context: StageContext, study: Study, setup: TrialSetup, num_trials: int) -> None:
    from trainers.search.tuner import TuneSettings, make_scheduler, run_tune

    search = context.run_resolved.spec.search
    assert search is not None
    if num_trials < 1:
        return
    events: EventSink = context.events

    def listen(trial: Trial) -> None:
        events.emit(trial_event(context.stage, search.metric, trial))
        context.progress(sum(item.ended for item in study.trials), search.trials, "trials")

    scheduler = make_scheduler(
        study, search.grace_epochs, search.reduction_factor, early_stopping=search.scheduler != "none"
    )
    settings = TuneSettings(
        num_trials=num_trials,
        concurrency=trial_concurrency(search, context.host),
        use_gpu=bool(context.host.gpus),
        name=f"search-{context.run.name}-{context.digest[:12]}",
    )
    run_tune(study, scheduler, setup, settings, listen)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
