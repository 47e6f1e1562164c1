"""What an operator is told before a switch."""

from __future__ import annotations

from hostler.gateway.scheduling.queue import Ticket
from hostler.gateway.scheduling.scheduler import Scheduler
from hostler.gateway.scheduling.types import SchedulerSettings
from hostler.supervisor.contract import HostStatus, ModelStatus, ProfileInfo


def host(*, budget: int | None = None) -> Scheduler:
    """A host with `a` running and `b` not; each takes 6 bytes and 4 seconds to load."""
    scheduler = Scheduler(SchedulerSettings())
    profiles = tuple(ProfileInfo(name=name, load_s=4.0, memory_bytes=6) for name in "ab")
    models = (ModelStatus(model="a", state="ready", since=0.0, generation=1),)
    scheduler.apply_snapshot(
        HostStatus(profiles=profiles, models=models, exclusive=budget is None, budget_bytes=budget), now=0.0
    )
    return scheduler


def test_a_running_model_costs_nothing() -> None:
    told = host().forecast("a", 1.0)
    assert told is not None
    assert (told.state, told.stops, told.ready_s) == ("ready", (), 0.0)


def test_a_switch_stops_the_other_model_and_waits_for_its_answers() -> None:
    scheduler = host()
    scheduler.request(Ticket(id=1, model="a", at=1.0), 1.0)
    scheduler.request(Ticket(id=2, model="a", at=1.0), 1.0)
    told = scheduler.estimate_switch("b", 2.0)
    assert told is not None
    assert (told.stops, told.answers, told.displaced, told.load_s) == (("a",), 1, 1, 4.0)
    assert told.ready_s > 4.0


def test_nothing_goes_where_both_fit() -> None:
    told = host(budget=12).forecast("b", 1.0)
    assert told is not None
    assert (told.possible, told.stops) == (True, ())


def test_what_can_never_fit_is_said() -> None:
    told = host(budget=5).forecast("b", 1.0)
    assert told is not None
    assert not told.possible


def test_an_unknown_model_has_no_forecast() -> None:
    assert host().forecast("x", 1.0) is None


def test_a_time_is_known_when_every_load_and_answer_before_it_was_seen() -> None:
    scheduler = host()
    scheduler.request(Ticket(id=1, model="a", at=1.0), 1.0)
    scheduler.request(Ticket(id=2, model="b", at=1.0), 1.0)
    assert not scheduler.is_measured("b", 2)  # how long answers of `a` take is a guess yet
    scheduler.request(Ticket(id=3, model="a", at=1.0), 1.0)
    scheduler.release(1, 2.0)
    assert scheduler.is_measured("b", 2)
    scheduler.request(Ticket(id=4, model="b", at=2.0), 2.0)
    assert not scheduler.is_measured("b", 4)  # and now it is one of `b` that comes first
