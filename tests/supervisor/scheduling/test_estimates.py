"""Estimated waits: from measured loads and answers, for `Retry-After`, progress and a switch that is considered."""

from __future__ import annotations

import pytest
from fakes.scheduler_host import SETTINGS, A, B, SchedulerHost, loaded_host, profile, status

from hostler.supervisor.contract import HostStatus, ModelStatus, ProfileInfo
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import SchedulerSettings


def considered(*, budget: int | None = None) -> Scheduler:
    """A host with `a` running and `b` not; each takes 6 bytes and 4 seconds to load."""
    scheduler = Scheduler(SchedulerSettings())
    profiles = tuple(ProfileInfo(name=name, load_s=4.0, memory_bytes=6) for name in "ab")
    models = (ModelStatus(model="a", state="ready", since=0.0, generation=1),)
    scheduler.apply_snapshot(
        HostStatus(profiles=profiles, models=models, exclusive=budget is None, budget_bytes=budget), now=0.0
    )
    return scheduler


def test_a_loaded_model_displaces_nothing() -> None:
    estimate = considered().estimate_switch("a", 1.0)
    assert estimate is not None
    assert (estimate.state, estimate.stops, estimate.ready_s) == ("ready", (), 0.0)


def test_a_switch_stops_the_other_model_and_waits_for_its_answers() -> None:
    scheduler = considered()
    scheduler.request(Ticket(id=1, model="a", at=1.0), 1.0)
    scheduler.request(Ticket(id=2, model="a", at=1.0), 1.0)
    estimate = scheduler.estimate_switch("b", 2.0)
    assert estimate is not None
    assert (estimate.stops, estimate.answers, estimate.displaced, estimate.load_s) == (("a",), 1, 1, 4.0)
    assert estimate.ready_s > 4.0


def test_nothing_stops_where_both_fit() -> None:
    estimate = considered(budget=12).estimate_switch("b", 1.0)
    assert estimate is not None
    assert (estimate.possible, estimate.stops) == (True, ())


def test_a_model_that_never_fits_is_impossible() -> None:
    estimate = considered(budget=5).estimate_switch("b", 1.0)
    assert estimate is not None
    assert not estimate.possible


def test_an_unknown_model_has_no_estimate() -> None:
    assert considered().estimate_switch("x", 1.0) is None


def test_an_estimate_is_measured_once_every_load_and_answer_before_it_was_seen() -> None:
    scheduler = considered()
    scheduler.request(Ticket(id=1, model="a", at=1.0), 1.0)
    scheduler.request(Ticket(id=2, model="b", at=1.0), 1.0)
    assert not scheduler.is_measured("b", 1.0, 2)  # how long answers of `a` take is a guess yet
    scheduler.request(Ticket(id=3, model="a", at=1.0), 1.0)
    scheduler.release(1, 2.0)
    assert scheduler.is_measured("b", 2.0, 2)
    scheduler.request(Ticket(id=4, model="b", at=2.0), 2.0)
    assert not scheduler.is_measured("b", 2.0, 4)  # and now it is one of `b` that comes first


def test_retry_after_is_estimated_from_measured_loads() -> None:
    host = SchedulerHost(A, max_waiting=1)
    ticket = host.request("a")
    host.advance_to(40.0)
    host.finish_switch()
    host.release(ticket)
    host.note(host.scheduler.process_ended("a", 40.0))
    host.request("a")
    assert host.refused[host.request("a")].retry_after_s == pytest.approx(40.0)
    host.advance_to(70.0)
    assert host.refused[host.request("a")].retry_after_s == pytest.approx(11.0)  # behind the one refused before


def test_retry_after_is_estimated_from_measured_answers() -> None:
    host = loaded_host(A, max_waiting=1)
    for _ in range(30):
        ticket = host.request("a")
        host.advance_to(host.now + 8.0)
        host.release(ticket)
    host.request("a")
    host.request("a")
    assert host.refused[host.request("a")].retry_after_s == pytest.approx(8.0, rel=0.05)


def test_retry_after_the_wait_limit_is_the_estimated_wait() -> None:
    host = loaded_host(A, max_wait_s=50.0)
    for _ in range(30):
        ticket = host.request("a")
        host.advance_to(host.now + 8.0)
        host.release(ticket)
    host.request("a")
    waits = host.request("a")
    host.advance_to(host.now + 50.0)
    assert host.refused[waits].reason == "wait_limit"
    assert host.refused[waits].retry_after_s == pytest.approx(8.0, rel=0.05)


def test_estimates_grow_with_what_is_ahead() -> None:
    host = loaded_host(profile("a", load_s=4.0), profile("b", load_s=20.0))
    assert host.scheduler.estimate_s("a", 0.0) == 0.0
    assert host.scheduler.estimate_s("b", 0.0) == 20.0
    host.request("a")
    assert host.scheduler.estimate_s("a", 0.0) > 0.0
    assert host.scheduler.estimate_s("b", 0.0) > 20.0


def test_queued_tickets_have_estimates_of_their_own() -> None:
    host = SchedulerHost(profile("a", load_s=4.0))
    first, second = host.request("a"), host.request("a")
    assert host.scheduler.estimate_s("a", 1.0, first) == 3.0
    assert host.scheduler.estimate_s("a", 1.0, second) > 3.0


def test_every_queued_ticket_has_a_position() -> None:
    host = loaded_host(A, B)
    running, first, second = host.request("a"), host.request("b"), host.request("a")
    assert [host.scheduler.position(ticket) for ticket in (running, first, second)] == [None, 1, 2]
    view = host.scheduler.view()
    assert [ticket.id for ticket in view.waiting] == [first, second]
    assert [(model.model, model.phase, model.running, model.waiting) for model in view.models] == [
        ("a", "ready", 1, 1), ("b", "cold", 0, 1)]  # fmt: skip


@pytest.mark.parametrize("early", [True, False])
def test_earlier_answers_seed_the_estimates(early: bool) -> None:
    scheduler = Scheduler(SETTINGS)
    known = status(profile("a"), states={"a": "ready"})
    if early:
        scheduler.seed_service_times({"a": [2.0, 2.0], "gone": [9.0]})
        scheduler.apply_snapshot(known, 0.0)
    else:
        scheduler.apply_snapshot(known, 0.0)
        scheduler.seed_service_times({"a": [2.0, 2.0], "gone": [9.0]})
    scheduler.request(Ticket(id=1, model="a", at=0.0), 0.0)
    scheduler.request(Ticket(id=2, model="a", at=0.0), 0.0)
    assert scheduler.estimate_s("a", 0.0, 2) == pytest.approx(2.0)
    assert scheduler.is_measured("a", 0.0, 2)


def test_measured_answers_take_precedence_over_earlier_ones() -> None:
    host = SchedulerHost(profile("a"), states={"a": "ready"})
    host.scheduler.request(Ticket(id=101, model="a", at=0.0), 0.0)
    host.scheduler.release(101, 1.0)
    host.scheduler.seed_service_times({"a": [60.0]})
    host.scheduler.request(Ticket(id=102, model="a", at=1.0), 1.0)
    host.scheduler.request(Ticket(id=103, model="a", at=1.0), 1.0)
    assert host.scheduler.estimate_s("a", 1.0, 103) == pytest.approx(1.0)


def test_an_answer_that_takes_longer_than_usual_leaves_no_estimate_for_what_waits_for_it() -> None:
    host = loaded_host(A, profile("b", load_s=4.0))
    host.scheduler.seed_service_times({"a": [10.0]})
    host.request("a")
    waiting = host.request("b")
    assert host.scheduler.estimate_s("b", 3.0, waiting) == pytest.approx(11.0)  # 7 s of the answer, 4 s of the load
    assert host.scheduler.is_measured("b", 3.0, waiting)
    assert not host.scheduler.is_measured("b", 13.0, waiting)


def test_the_supervisors_own_estimate_of_a_load_counts_as_long_as_it_holds() -> None:
    host = SchedulerHost(profile("a", load_s=9.0))
    waiting = host.request("a")
    host.scheduler.load_moved("a", 3.0, 1.0)
    assert host.scheduler.estimate_s("a", 2.0, waiting) == pytest.approx(2.0)
    assert host.scheduler.is_measured("a", 2.0, waiting)
    host.scheduler.load_moved("a", None, 5.0, overdue=True)
    assert not host.scheduler.is_measured("a", 5.0, waiting)


def test_no_request_is_estimated_to_be_served_before_one_with_an_earlier_place() -> None:
    host = loaded_host(A, profile("b", load_s=30.0), patience_s=1000.0)
    host.scheduler.seed_service_times({"a": [2.0], "b": [2.0]})
    host.request("a")
    first, second = host.request("b"), host.request("a")
    alone = [host.scheduler.estimate_s(model, 0.0, number) for model, number in (("b", first), ("a", second))]
    assert alone[0] > alone[1]
    waits = [(ticket.id, wait_s) for ticket, wait_s in host.scheduler.in_order(0.0)]
    assert [number for number, _ in waits] == [first, second]
    assert waits[0][1] <= waits[1][1]
