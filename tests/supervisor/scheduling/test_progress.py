"""The progress of leases: the switch to their model, or their place in the queue."""

from __future__ import annotations

from fakes.leases import FakeHost
from fakes.scheduler_host import SchedulerHost, loaded_host, profile

from hostler.supervisor.contract import SwitchMoved
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.progress import POSITIONS_EVERY_S, QueueProgress, SwitchSpan


class Queued:
    """A host whose model `a` is loaded and busy, with queued leases of `b`."""

    def __init__(self, count: int) -> None:
        self.host: SchedulerHost = loaded_host(profile("a"), profile("b", load_s=4.0), max_waiting=100)
        self.host.request("a")
        self.leases: dict[int, Lease] = {}
        for _ in range(count):
            number = self.host.request("b")
            self.leases[number] = Lease(
                FakeHost(), lease_id=number, model="b", requested_at=0.0, client="anna", request_id=f"r{number}"
            )
        self.first = next(iter(self.leases.values()))
        self.progress = QueueProgress(self.host.scheduler, self.leases)


def moved(phase: str, **fields: object) -> SwitchMoved:
    return SwitchMoved(**{"id": "1", "model": "b", "phase": phase, "from_models": ("a",), **fields})  # type: ignore[arg-type]


def test_a_queued_lease_has_a_position_behind_the_loaded_model() -> None:
    queued = Queued(2)
    last = list(queued.leases.values())[1]
    progress = queued.progress.progress(last, 3.0, ["a"])
    assert (progress.phase, progress.model, progress.from_model) == ("queued", "b", "a")
    assert (progress.position, progress.waited_s) == (2, 3.0)
    assert progress.eta_s is None, "an answer of a was never measured"


def test_a_switch_under_way_is_shown_with_its_own_estimate() -> None:
    queued = Queued(1)
    queued.progress.switch_moved(moved("loading", percent=40.0, eta_s=2.5), 0.0)
    progress = queued.progress.progress(queued.first, 1.0, ["a"])
    assert (progress.phase, progress.percent, progress.eta_s, progress.from_model) == ("loading", 40.0, 1.5, "a")
    assert progress.elapsed_s == 1.0
    queued.progress.clear()
    assert queued.progress.progress(queued.first, 1.0, ["a"]).phase == "queued"


def test_the_time_of_a_load_is_that_of_all_its_steps_without_what_came_before() -> None:
    queued = Queued(1)
    phases = {"stopping": 4.0, "starting": 1.0}
    queued.progress.switch_moved(moved("loading", elapsed_s=11.0, phase_seconds=phases), 20.0)
    assert queued.progress.progress(queued.first, 21.5, []).elapsed_s == 8.5


def test_past_the_estimate_only_the_time_so_far_is_shown() -> None:
    queued = Queued(1)
    queued.progress.switch_moved(moved("loading", elapsed_s=14.0, overdue=True), 0.0)
    progress = queued.progress.progress(queued.first, 0.0, ["a"])
    assert (progress.overdue, progress.percent, progress.eta_s, progress.elapsed_s) == (True, None, None, 14.0)


def test_each_phase_notifies_the_waiting_leases_once() -> None:
    queued = Queued(1)
    queued.progress.switch_moved(moved("loading", percent=1.0), 0.0)
    assert queued.first.take_notification()
    queued.progress.switch_moved(moved("loading", percent=2.0), 0.0)
    assert not queued.first.take_notification()
    queued.progress.switch_moved(moved("ready"), 0.0)
    assert queued.first.take_notification()


def test_a_switch_counts_as_far_as_a_request_has_waited_for_it() -> None:
    switch = SwitchSpan(2.0)
    assert [switch.overlap_s(since, 10.0) for since in (0.0, 4.0, 11.0)] == [8.0, 6.0, 0.0]
    switch.ended = 5.0
    assert [switch.overlap_s(since, 10.0) for since in (0.0, 4.0, 6.0)] == [3.0, 1.0, 0.0]


def test_the_queue_lists_requests_with_their_estimates() -> None:
    queued = Queued(2)
    waiting = queued.progress.queue(2.0)
    assert [(each.id, each.model, each.client, each.position, each.waited_s) for each in waiting] == [
        (f"r{number}", "b", "anna", position, 2.0) for position, number in enumerate(queued.leases, start=1)
    ]


def test_the_queue_shows_measured_estimates_only() -> None:
    queued = Queued(2)
    assert [each.eta_s for each in queued.progress.queue(0.0)] == [None, None], "an answer of a was never measured"
    queued.host.release(1)
    queued.progress.switch_moved(moved("loading", eta_s=2.5), 0.0)
    assert [each.eta_s for each in queued.progress.queue(0.0)] == [2.5, None], "an answer of b was never measured"
    queued.progress.switch_moved(moved("loading", overdue=True), 9.0)
    assert [each.eta_s for each in queued.progress.queue(9.0)] == [None, None]


def test_a_long_queue_is_listed_with_what_is_known_of_its_models() -> None:
    queued = Queued(60)
    queued.host.release(1)
    queued.progress.switch_moved(moved("loading", eta_s=2.5), 0.0)
    assert {each.eta_s for each in queued.progress.queue(0.0)} == {None}


def test_positions_in_a_long_queue_are_computed_rarely() -> None:
    queued = Queued(60)
    assert queued.progress.crowded
    second = list(queued.leases.values())[1]
    assert queued.progress.progress(second, 1.0, ["a"]).position == 2
    queued.host.cancel(queued.first.id)
    assert queued.progress.progress(second, 1.0 + POSITIONS_EVERY_S / 2, ["a"]).position == 2
    assert queued.progress.progress(second, 1.0 + POSITIONS_EVERY_S, ["a"]).position == 1
