"""The number that says which driver may write into a run's folder."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from cluster.errors import ReplacedRunError
from cluster.store.fence import Fence, ask_to_stop
from cluster.store.run_folder import RunFolder


def test_the_last_to_draw_writes_and_a_request_to_stop_names_one_driver(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = Fence.draw(run)
    first.check()
    ask_to_stop(run)
    second = Fence.draw(run)
    assert (first.asked_to_stop(), second.asked_to_stop()) == (True, False)
    assert (first.holds(), second.holds()) == (False, True)
    with pytest.raises(ReplacedRunError, match="another driver has taken it over"):
        first.check()
    assert [path.name for path in run.fence.iterdir()] == [second.name]
    shutil.rmtree(run.fence)
    assert not second.holds(), "a run that was removed has no driver"
    assert Fence.draw(run).name != first.name, "numbers begin anew, names never come twice"


def test_of_many_that_draw_at_once_one_holds(tmp_path: Path) -> None:
    run, start, drawn = RunFolder(tmp_path), threading.Barrier(16), []

    def draw() -> None:
        start.wait()
        drawn.append(Fence.draw(run))

    threads = [threading.Thread(target=draw) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 16
    assert sum(fence.holds() for fence in drawn) == 1
