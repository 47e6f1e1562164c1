"""A host that is drained: nothing new, answers end, models leave."""

from __future__ import annotations

import msgspec
from fakes.scheduler_host import SchedulerHost, profile, status

from hostler.supervisor.contract import HostStatus, ModelLease
from hostler.supervisor.scheduling.types import Unload
from hostler.supervisor.scheduling.views import UNAVAILABLE


def drain(host: SchedulerHost, draining: bool = True, *, leases: tuple[ModelLease, ...] = ()) -> None:
    models = {view.model: view.phase for view in host.scheduler.view().models}
    states = {model: "ready" if phase == "ready" else "starting" for model, phase in models.items() if phase != "cold"}
    known: HostStatus = status(*host.profiles, states=states, limits={"budget_bytes": 99})
    known = msgspec.structs.replace(known, draining=draining, leases=leases)
    host.note(host.scheduler.apply_snapshot(known, host.now))


def shared(*names: str, **states: str) -> SchedulerHost:
    return SchedulerHost(*(profile(name) for name in names), limits={"budget_bytes": 99}, states=states)


def test_queued_tickets_leave_and_later_ones_do_not_enter() -> None:
    host = shared("a", "b", a="ready")
    running, waiting, background = host.request("a"), host.request("a"), host.request("b", background=True)
    drain(host)
    assert {ticket: refusal.reason for ticket, refusal in host.refused.items()} == {
        waiting: "stopping", background: "stopping",
    }  # fmt: skip
    later = host.request("a")
    assert host.refused[later].reason == "stopping"
    assert host.using == {running: "a"}
    assert host.scheduler.distance("a", host.now) == UNAVAILABLE
    assert host.scheduler.outlooks(host.now)["b"].steps == UNAVAILABLE.steps


def test_models_leave_once_their_answers_have_ended_pinned_ones_too() -> None:
    host = SchedulerHost(profile("a"), profile("b", pinned=True), limits={"budget_bytes": 99}, states={"a": "ready", "b": "ready"})  # fmt: skip
    running = host.request("a")
    drain(host)
    assert host.unloads == ["b"]
    host.release(running)
    assert host.unloads == ["b", "a"]


def test_a_load_is_given_up() -> None:
    host = shared("a")
    host.request("a")
    drain(host)
    assert host.unloads == ["a"]


def test_a_leased_model_stays_until_its_lease_ends() -> None:
    host = shared("a", a="ready")
    lease = ModelLease(id="l", model="a", holder="anna", created_at=0.0, expires_at=60.0)
    drain(host, leases=(lease,))
    assert host.unloads == []
    assert host.note(host.scheduler.apply_leases((), 1.0)) == [Unload(model="a")]


def test_a_host_that_is_back_in_service_serves_again() -> None:
    host = shared("a", a="ready")
    drain(host)
    host.note(host.scheduler.unloaded("a", host.now))
    drain(host, draining=False)
    ticket = host.request("a")
    host.finish_switch()
    assert host.served == [ticket]
