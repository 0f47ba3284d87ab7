"""Runs that share a cluster start in the order of their submission, whatever Ray's own accounts lag behind."""

from __future__ import annotations

from cluster.control.rooms import Room, Share
from cluster.control.turns import FORGOTTEN_S, Asked, SeenJob, Turns, View

ONE, TWO, THREE = (Asked(f"0{number}000000", name, 2) for number, name in enumerate(("one", "two", "three"), 1))


def held(cpus: float, host: str = "a") -> tuple[Share, ...]:
    return (Share(host, 0, cpus),)


def view(free: float, **jobs: tuple[Share, ...]) -> View:
    """A host of two CPUs, and the three jobs, submitted one after another; `jobs`: what they hold."""
    seen = {
        asked.job: SeenJob(float(at), asked.run, jobs.get(asked.run, ())) for at, asked in enumerate((ONE, TWO, THREE))
    }
    return View({"a": Room(2.0)}, {"a": Room(free)}, seen)


def test_the_order_is_that_of_submission_not_of_asking() -> None:
    turns = Turns()
    assert turns.ask(ONE, view(2.0), 10.0).granted
    waits = turns.ask(THREE, view(2.0), 11.0)  # it asks before the second one does
    assert waits.reason.startswith("waiting: needs 2 workers of 1 CPU each; free now: room for 0 workers")
    assert not turns.ask(TWO, view(0.0, one=held(2.0)), 12.0).granted
    turns.leave(ONE.job)
    last = turns.ask(THREE, view(2.0), 13.0)  # it is the second one's turn, who does not know it yet
    assert last.reason.endswith("room for 0 workers, run two holds 2 CPUs for an unknown time")
    assert turns.ask(TWO, view(2.0), 13.5).granted
    assert not turns.ask(THREE, view(0.0, two=held(2.0)), 14.0).granted


def test_a_larger_priority_goes_first_but_takes_no_turn_away() -> None:
    turns, first = Turns(), Asked(THREE.job, "three", 2, priority=1)
    assert turns.ask(TWO, view(2.0), 10.0).granted
    assert not turns.ask(first, view(0.0, two=held(2.0)), 11.0).granted
    assert turns.ask(ONE, view(0.0, two=held(2.0)), 12.0).reason.endswith("behind three in the queue")
    turns.leave(TWO.job)
    assert not turns.ask(ONE, view(2.0), 13.0).granted
    assert turns.ask(first, view(2.0), 14.0).granted


def test_the_reason_names_runs_that_hold_and_the_one_before() -> None:
    turns = Turns()
    turns.ask(ONE, view(2.0), 10.0)
    full = view(0.0, one=held(2.0))
    assert turns.ask(TWO, full, 11.0).reason == (
        "waiting: needs 2 workers of 1 CPU each; free now: room for 0 workers, run one holds 2 CPUs for an unknown time"
    )
    assert turns.ask(THREE, full, 11.0).reason.endswith("; behind two in the queue")
    theirs = turns.ask(TWO, View(full.hosts, full.free, {TWO.job: SeenJob(1.0)}), 12.0)
    assert theirs.reason.endswith("others hold 2 CPUs for an unknown time")


def test_room_of_a_turn_is_kept_until_its_workers_stand_and_when_they_are_lost() -> None:
    turns = Turns()
    assert turns.ask(ONE, view(2.0), 10.0).granted
    assert not turns.ask(TWO, view(2.0), 10.5).granted  # Ray shows all of it free: nothing stands yet
    assert not turns.ask(TWO, view(2.0, one=held(2.0)), 11.0).granted  # it stands; the node has not reported it yet
    turns.ask(ONE, view(2.0), 12.0, holds=True)
    assert not turns.ask(TWO, view(2.0), 12.5).granted  # its workers died, and start anew


def test_a_new_queue_knows_what_the_old_one_knew() -> None:
    turns = Turns()
    full = view(0.0, one=held(2.0))
    assert not turns.ask(THREE, full, 10.0).granted
    turns.ask(ONE, full, 10.5, holds=True)
    assert not turns.ask(TWO, full, 11.0).granted
    assert not turns.ask(THREE, view(2.0), 12.0).granted  # the room of the one that holds its turn
    turns.leave(ONE.job)
    assert not turns.ask(THREE, view(2.0), 12.0).granted
    assert turns.ask(TWO, view(2.0), 12.0).granted


def test_who_asks_no_more_or_lives_no_more_is_forgotten() -> None:
    turns = Turns()
    assert turns.ask(ONE, view(2.0), 10.0).granted
    assert not turns.ask(TWO, view(2.0), 11.0).granted
    without = view(2.0)
    alive = View(without.hosts, without.free, {job: seen for job, seen in without.jobs.items() if job != ONE.job})
    assert turns.wanted_workers(11.0) == 4
    assert turns.ask(TWO, alive, 12.0).granted
    assert turns.wanted_workers(12.0) == 0
    late = 12.0 + FORGOTTEN_S + 1
    assert turns.ask(THREE, alive, late).granted


def test_a_cluster_with_gpus_gives_each_worker_one() -> None:
    gpus = View({"g": Room(8.0, (0.0,) * 2)}, {"g": Room(8.0, (0.0,))}, {ONE.job: SeenJob(0.0)})
    answer = Turns().ask(ONE, gpus, 1.0)
    assert answer.reason == (
        "waiting: needs 2 workers of 1 GPU each; free now: room for 1 worker, others hold 1 GPU for an unknown time"
    )


def test_a_run_that_never_fits_says_so_and_holds_up_nobody() -> None:
    turns = Turns()
    assert turns.ask(Asked(ONE.job, "one", 3), view(2.0), 1.0).reason == (
        "waiting: needs 3 workers of 1 CPU each, which the cluster does not have when all else has ended: hosts must "
        "join; the largest that could start is 2 workers of 1 CPU each"
    )
    assert turns.ask(TWO, view(2.0), 2.0).granted


def test_a_small_run_goes_ahead_only_where_it_delays_nobody() -> None:
    jobs = {asked.job: SeenJob(float(at), asked.run) for at, asked in enumerate((ONE, TWO, THREE))}
    jobs[ONE.job] = SeenJob(0.0, "one", held(3.0))
    small, large = Asked(THREE.job, "three", 1), Asked(TWO.job, "two", 4)
    turns = Turns()
    assert not turns.ask(large, View({"a": Room(4.0)}, {"a": Room(1.0)}, jobs), 5.0).granted
    kept = turns.ask(small, View({"a": Room(4.0)}, {"a": Room(1.0)}, jobs), 5.0)
    assert kept.reason.endswith("there is room, kept for two, which is before it in the queue")
    assert turns.ask(small, View({"a": Room(5.0)}, {"a": Room(2.0)}, jobs), 6.0).granted
