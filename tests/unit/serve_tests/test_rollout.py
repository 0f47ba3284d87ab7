"""The life of versions as pure transitions: what each state may become, the way back, two clients at once."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from cluster.errors import RequestError
from serve.config import EndpointConfig, VersionConfig
from serve.rollout import NEXT, By, MovedError, Rollout, State, adopt, fail, serve, settle, stage, undeploy, way_back

BY = By(author="ann@host", unix_s=1.0)


def version(number: str) -> VersionConfig:
    return VersionConfig(version=number, bundle=f"/b/{number}", manifest_sha256=number * 4)


FIRST = EndpointConfig(name="m", versions=(version("1"),), default_version="1")


def with_new(config: EndpointConfig, number: str) -> EndpointConfig:
    return config.model_copy(update={"versions": (*config.versions, version(number)), "default_version": number})


def served(*numbers: str) -> Rollout:
    """An endpoint that has served these versions one after the other, each well."""
    rollout = Rollout(name="m")
    for number in numbers:
        config = with_new(rollout.config, number) if rollout.config is not None else FIRST
        rollout = stage(rollout, version(number), BY)
        rollout = settle(serve(rollout, config, BY, instead_of=rollout.config), BY)
    return rollout


def back(rollout: Rollout, to: str | None = None) -> Rollout:
    assert rollout.config is not None
    config = rollout.config.with_default(way_back(rollout, to))
    return settle(serve(rollout, config, BY, instead_of=rollout.config, back=True), BY)


def states(rollout: Rollout) -> dict[str, State]:
    return {each.version: each.state for each in rollout.versions}


def default(rollout: Rollout) -> str | None:
    return rollout.config.default_version if rollout.config is not None else None


def test_a_version_goes_from_staged_to_retired_and_each_step_is_in_the_history() -> None:
    one = served("1")
    staged = stage(one, version("2"), BY)
    assert (states(staged), default(staged)) == ({"1": "serving", "2": "staged"}, "1")
    assert one.config is not None
    changed = serve(staged, with_new(one.config, "2"), BY, instead_of=one.config)
    assert (states(changed), default(changed)) == ({"1": "draining", "2": "serving"}, "2")
    done = settle(changed, BY)
    assert states(done) == {"1": "retired", "2": "serving"}
    assert [(each.version, each.state) for each in done.changes][-4:] == [
        ("2", "staged"), ("1", "draining"), ("2", "serving"), ("1", "retired")
    ]  # fmt: skip
    assert [one.revision, staged.revision, changed.revision, done.revision] == [2, 3, 4, 5]


@pytest.mark.parametrize("steps", ["back", "back, deploy 3, back", "deploy 3, back, back"])
def test_the_way_back_leads_to_what_was_served_well_and_never_to_what_was_fled_from(steps: str) -> None:
    rollout = served("1", "2")
    for step in steps.split(", "):
        if step == "back":
            rollout = back(rollout)
        else:
            assert rollout.config is not None
            config = with_new(rollout.config, "3")
            rollout = settle(serve(rollout, config, BY, instead_of=rollout.config), BY)
    assert default(rollout) == "1"
    with pytest.raises(RequestError, match="no version served well before it"):
        way_back(rollout)


def test_a_version_may_be_named_for_the_way_back_but_not_a_failed_or_unknown_one() -> None:
    rollout = back(served("1", "2", "3"), "1")
    assert (default(rollout), rollout.served) == ("1", ("1",))
    forward = back(rollout, "3")
    assert (default(forward), forward.served) == ("3", ("3",))
    broken = fail(stage(forward, version("4"), BY), "4", BY.model_copy(update={"reason": "parity"}))
    for to, told in (("4", "version 4 failed: parity"), ("9", "it has versions 1, 2, 3")):
        with pytest.raises(RequestError, match=told):
            way_back(broken, to)
    with pytest.raises(RequestError, match="is its first"):
        way_back(served("1"))
    with pytest.raises(RequestError, match="there is no such endpoint"):
        way_back(Rollout(name="m"))


def test_a_staged_version_that_fails_changes_nothing_and_its_number_does_not_return() -> None:
    one = served("1")
    failed = fail(stage(one, version("2"), BY), "2", BY.model_copy(update={"reason": "it raised"}))
    assert (failed.config, failed.served, failed.next_number) == (one.config, one.served, "3")
    record = failed.find("2")
    assert record is not None
    assert (record.state, record.by.reason) == ("failed", "it raised")


def test_a_serving_version_that_fails_gives_its_place_back() -> None:
    one = served("1")
    assert one.config is not None
    staged = stage(one, version("2"), BY)
    changed = serve(staged, with_new(one.config, "2"), BY, instead_of=one.config)
    undone = fail(changed, "2", BY, before=staged)
    assert (states(undone), undone.config, undone.served) == ({"1": "serving", "2": "failed"}, one.config, ("1",))
    two = served("1", "2")
    assert two.config is not None
    gone_back = serve(two, two.config.with_default("1"), BY, instead_of=two.config, back=True)
    stayed = fail(gone_back, "1", BY, before=two)
    assert (states(stayed), stayed.served) == ({"1": "retired", "2": "serving"}, ("1", "2")), "1 may be tried again"
    first = stage(Rollout(name="m"), version("1"), BY)
    nothing = fail(serve(first, FIRST, BY, instead_of=None), "1", BY, before=first)
    assert (nothing.config, nothing.served, states(nothing)) == (None, (), {"1": "failed"})


def test_a_change_that_was_decided_for_another_state_is_refused() -> None:
    one = served("1")
    assert one.config is not None
    theirs = stage(one, version("2"), BY)
    with pytest.raises(MovedError):
        stage(theirs, version("2"), BY)
    theirs = serve(theirs, with_new(one.config, "2"), BY, instead_of=one.config)
    with pytest.raises(MovedError):
        serve(theirs, with_new(one.config, "3"), BY, instead_of=one.config)


def test_an_endpoint_of_before_the_records_is_taken_over_with_its_history() -> None:
    config = with_new(with_new(FIRST, "2"), "3").with_default("2")
    rollout = adopt(Rollout(name="m"), config, BY)
    assert (states(rollout), rollout.served) == ({"1": "retired", "2": "serving", "3": "retired"}, ("1", "2"))
    assert way_back(rollout) == "1"


def test_an_endpoint_that_is_taken_away_keeps_its_history_and_begins_anew() -> None:
    gone = undeploy(served("1", "2"), BY)
    assert (gone.config, gone.versions, gone.next_number) == (None, (), "1")
    assert gone.changes[-1].state == "undeployed"


def test_no_step_is_made_that_the_table_does_not_have() -> None:
    """`retired` is left by `serve` alone, `failed` by nothing."""
    assert set(NEXT) == set(get_args(State)) == {"staged", *(state for after in NEXT.values() for state in after)}
    assert NEXT["failed"] == ()
    broken = fail(stage(served("1"), version("2"), BY), "2", BY)
    assert broken.config is not None
    for config, to_go_back in product([with_new(broken.config, "2")], [False, True]):
        with pytest.raises(RequestError, match="it is failed"):
            serve(broken, config, BY, instead_of=broken.config, back=to_go_back)
