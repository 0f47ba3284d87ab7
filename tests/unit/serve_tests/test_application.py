"""What Ray Serve is given of a wanted configuration: what served before as the fallback, and replicas in two steps."""

from __future__ import annotations

import pytest

from serve.config import EndpointConfig, VersionConfig
from serve.deployments.application import Place
from tests.unit.serve_tests.test_rollout import FIRST, with_new

SECOND = with_new(FIRST, "2")


def place(there: EndpointConfig | None) -> Place:
    return Place("http://127.0.0.1:1/m", "", there, {}, {})


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.deployments.application.is_unloaded", lambda name: False)


@pytest.mark.parametrize(
    ("there", "wanted", "fallback"),
    [
        (None, FIRST, None),
        (FIRST, FIRST, None),
        (FIRST, SECOND, "1"),
        (SECOND, SECOND.with_default("1"), "2"),
        (SECOND.model_copy(update={"fallback": "1"}), SECOND, "1"),  # its client died before every replica had it
        (None, SECOND.model_copy(update={"fallback": "1"}), "1"),  # the same, and then the head
        (
            FIRST,
            EndpointConfig(name="m", versions=(VersionConfig(version="2", bundle="/b"),), default_version="2"),
            None,
        ),
    ],
)
def test_what_served_before_is_the_fallback_until_every_replica_has_the_new_version(
    there: EndpointConfig | None, wanted: EndpointConfig, fallback: str | None
) -> None:
    assert place(there).adjusted(wanted) == wanted.model_copy(update={"fallback": fallback})


def test_a_new_version_keeps_the_number_of_replicas_where_it_comes_with_fewer() -> None:
    two = FIRST.with_values({"replicas.min": 2, "replicas.max": 2})
    fewer = with_new(FIRST, "2")
    assert place(two).without_fewer_replicas(fewer).spec.replicas == two.spec.replicas
    assert place(two).without_fewer_replicas(FIRST) == FIRST, "the same version: at once"
    more = with_new(two, "2")
    assert place(FIRST).without_fewer_replicas(more) == more
    assert place(None).without_fewer_replicas(fewer) == fewer
