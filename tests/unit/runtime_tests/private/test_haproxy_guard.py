"""cluster/runtime/private/haproxy_guard.py: what stands in for a HAProxy that is killed, and when nothing does."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from cluster.runtime.private.haproxy_guard import FAREWELL_S, others
from tests.unit.runtime_tests.private.haproxies import (
    Echo,
    ask,
    backend,
    eventually,
    haproxy,
    post,
    start_owner,
    write_configuration,
)


def test_a_killed_haproxy_is_replaced_at_once_until_its_owner_starts_another_one(tmp_path: Path) -> None:
    with backend(Echo) as well, haproxy(tmp_path, [well]) as made:
        eventually(lambda: ask(made.port, post(3))[0] == 200)
        made.process().kill()
        assert eventually(lambda: ask(made.port, post(3))[0] == 200) < 2.0
        assert not others(made.config)
        assert len(made.stand_ins()) == 1
        # Ray Serve starts the actor anew a while later
        eventually(lambda: psutil.Process(made.stand_ins()[0]).create_time() + FAREWELL_S + 0.5 < time.time())
        made.owner.kill()
        assert ask(made.port, post(3))[0] == 200
        write_configuration(made, None)  # which knows no endpoint yet
        second = start_owner(made.config, made.environment)
        try:
            refused = 0
            while not others(made.config) or made.stand_ins():
                refused += ask(made.port, post(3))[0] != 200
            assert refused <= 1, "a connection that the stand-in had not taken yet"
            assert ask(made.port, post(3))[0] == 200
        finally:
            second.kill()
            second.wait()


def test_a_reload_and_an_end_with_the_owner_leave_no_stand_in(tmp_path: Path) -> None:
    with backend(Echo) as well, haproxy(tmp_path, [well]) as made:
        first = made.process()
        second = start_owner(made.config, made.environment, "-sf", str(first.pid))
        eventually(lambda: others(made.config) not in ([], [first.pid]) and not first.is_running())
        second.kill()
        second.wait()
        made.process().kill()
        eventually(lambda: not guards(made.config))
        assert not made.stand_ins()


def guards(config: Path) -> list[int]:
    """Python processes that were started for this configuration, owners aside."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(config) in words and any(word.endswith("haproxy_start") for word in words):
            found.append(process.pid)
    return found
