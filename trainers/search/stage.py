"""The search stage: spec and prepared data -> the best values, with every trial on record.

Files: `trials.json` (all trials with values, epochs, states). Facts: `best`, `metrics`, `trials`.

Invariant: the user's own configuration is always trial 0, so a search never ends with less than what was written;
trials that ended are not run again, after an interruption (history.py) and when their number is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cluster.atomic import write_json
from cluster.errors import RunError
from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.resolve import ResolvedRun
from cluster.spec.rules import check_spec
from cluster.spec.search import SearchSpec
from cluster.spec.search_rules import trial_epochs
from cluster.store.run_folder import RunFolder
from cluster.store.stage_facts import SearchFacts
from cluster.telemetry.events import EventSink, Message, TrialUpdated
from cluster.telemetry.view import format_metric, format_value, short_name
from trainers.data.shard_store import prepared_of
from trainers.search.history import FOLDER, SearchHistory, identity_of
from trainers.search.journal import Journal, Trial, TrialState, read_journal
from trainers.search.preview import preview_search, trial_concurrency
from trainers.search.repeat import FINALISTS, Finalist, Repeat, RepeatSearcher, plan_repeats, rank_finalists
from trainers.search.schedulers import StopRule, make_scheduler, rungs_of
from trainers.search.space import distributions
from trainers.search.starting_points import starting_points
from trainers.search.study import Study, StudySettings
from trainers.search.trial import TrialSetup

if TYPE_CHECKING:
    from trainers.search.ray_tune import TuneSettings

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
    check_spec(resolved.spec)
    history = SearchHistory(context.run.path / FOLDER, identity_of(context))
    history.open()
    study = open_study(resolved, search, history.journal, context.run)
    done = sum(trial.ended for trial in study.trials)
    text = preview_search(resolved, search, context.host).sentence()
    if done:
        text = f"{done} of {max(done, search.trials)} trials ended before; they are not run again"
    context.events.emit(Message(stage=context.stage, text=text))
    _run_trials(context, study, search.trials - done)
    finalists = _run_repeats(context, study, history.repeats) if search.repeats else []
    result = search_result(study, search, finalists)
    write_json(context.folder / TRIALS, trial_table(study))
    history.finish()
    return result


def open_study(resolved: ResolvedRun, search: SearchSpec, journal: Path | None, run: RunFolder | None = None) -> Study:
    """A study over the spec's space, with the trials of the journal."""
    epochs = trial_epochs(resolved.spec, search)
    settings = StudySettings(
        space=distributions(search),
        mode=search.direction,
        seed=search.seed,
        rungs=rungs_of(epochs, search.grace_epochs, search.reduction_factor, search.scheduler),
        start=starting_points(resolved, search, run),
    )
    study = Study(settings, Journal(journal))
    if journal is not None:
        study.replay(read_journal(journal))
    return study


def search_result(study: Study, search: SearchSpec, finalists: Sequence[Finalist] = ()) -> StageResult:
    """The winner, whose values the run goes on with."""
    best = finalists[0].trial if finalists else study.best()
    if best is None:
        notes = {trial.note for trial in study.trials if trial.note}
        raise RunError(
            "Cannot choose the best trial",
            found=f"none of {len(study.trials)} trials ended with a finite {search.metric}: "
            + "; ".join(sorted(notes)[:3]),
            remedy="Lower the learning rates or batch sizes in search.space, or set search: null.",
        )
    facts = SearchFacts(
        best=best.values,
        metrics=best.metrics.get(study.best_epoch(best), {}),
        trials=len(study.trials),
        best_trial=best.number,
        metric=search.metric,
        repeats=[finalist.facts() for finalist in finalists],
    )
    states = [trial.state for trial in study.trials]
    ends = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    values = ", ".join(f"{short_name(path)} {format_value(value)}" for path, value in best.values.items())
    reached = format_metric(search.metric, study.best_value(best))
    if finalists:
        low, high = finalists[0].interval()
        reached = f"{format_value(finalists[0].mean)}, {format_value(low)} to {format_value(high)} over seeds"
    return StageResult(
        facts=facts,
        headline=f"{values} ({search.metric} {reached}); {ends}",
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


def repeat_event(stage: str, metric: str, repeat: Repeat) -> TrialUpdated:
    """A finalist under another seed, as the display sees it."""
    last = max(repeat.reports, default=0)
    metrics = {metric: repeat.reports[last], "epoch": float(last)} if last else {}
    state = SHOWN_STATES.get(cast("TrialState", repeat.state), "failed")
    note = repeat.note or f"seed {repeat.seed}"
    return TrialUpdated(
        stage=stage, trial=repeat.key, state=state, parameters=repeat.trial.values, metrics=metrics, note=note
    )


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


def _run_trials(context: StageContext, study: Study, num_trials: int) -> None:
    from trainers.search.ray_tune import StudySearcher, run_tune

    search = _search_of(context)
    if num_trials < 1:
        return
    events: EventSink = context.events

    def listen(trial: Trial) -> None:
        events.emit(trial_event(context.stage, search.metric, trial))
        context.progress(sum(item.ended for item in study.trials), search.trials, "trials")

    rule = StopRule(
        kind=search.scheduler,
        mode=search.direction,
        epochs=study.settings.rungs[-1],
        grace_epochs=search.grace_epochs,
        reduction_factor=search.reduction_factor,
        seed=search.seed,
    )
    settings = _settings(context, num_trials, "search")
    run_tune(StudySearcher(study, listen), make_scheduler(rule, study.trials), _setup(context), settings)


def _run_repeats(context: StageContext, study: Study, path: Path) -> list[Finalist]:
    """Train the finalists under other seeds; the best mean comes first."""
    from trainers.search.ray_tune import run_tune

    search = _search_of(context)
    finalists = study.ranked()[:FINALISTS]
    repeats = plan_repeats(finalists, context.run_resolved.spec.seed, search.repeats, path)

    def listen(repeat: Repeat) -> None:
        context.events.emit(repeat_event(context.stage, search.metric, repeat))
        context.progress(sum(item.state != "running" for item in repeats), len(repeats), "repeats")

    left = sum(repeat.state == "running" for repeat in repeats)
    if left:
        searcher = RepeatSearcher(repeats, path, listen, search.direction)
        rule = StopRule("none", search.direction, study.settings.rungs[-1], 1, 2)
        run_tune(searcher, make_scheduler(rule), _setup(context), _settings(context, left, "repeat"))
    return rank_finalists(finalists, repeats, search.direction)


def _settings(context: StageContext, num_trials: int, purpose: str) -> TuneSettings:
    from trainers.search.ray_tune import TuneSettings

    return TuneSettings(
        num_trials=num_trials,
        concurrency=min(num_trials, trial_concurrency(_search_of(context), context.host)),
        use_gpu=bool(context.host.gpus),
        name=f"{purpose}-{context.run.name}-{context.digest[:12]}",
    )


def _setup(context: StageContext) -> TrialSetup:
    search = _search_of(context)
    return TrialSetup(
        resolved=context.run_resolved,
        prepared=prepared_of(context).resolve(),
        metric=search.metric,
        epochs=trial_epochs(context.run_resolved.spec, search),
    )


def _search_of(context: StageContext) -> SearchSpec:
    search = context.run_resolved.spec.search
    assert search is not None, "the stage returns before this without a search"
    return search
