"""Views of a host: its models and queue for dashboards, and the distance that hosts are chosen by."""

from __future__ import annotations

from fakes.scheduler_host import A, B, SchedulerHost, loaded_host, profile

from hostler.supervisor.contract import Failure
from hostler.supervisor.scheduling.views import UNAVAILABLE


def steps(host: SchedulerHost, model: str) -> int:
    return host.scheduler.distance(model, host.now).steps


def test_a_loaded_model_is_nearer_than_a_loading_one_and_that_than_a_cold_one() -> None:
    big = {"memory_bytes": 6}
    host = loaded_host(profile("a", **big), profile("b", **big), profile("c", 2, memory_bytes=1), budget=7)
    assert (steps(host, "a"), steps(host, "c"), steps(host, "b")) == (0, 2, 3)
    host.request("c")
    assert steps(host, "c") == 1


def test_of_two_loaded_models_the_less_busy_one_is_nearer() -> None:
    quiet, busy = loaded_host(profile("a", 2)), loaded_host(profile("a", 2))
    busy.request("a")
    assert quiet.scheduler.distance("a", 0.0) < busy.scheduler.distance("a", 0.0) < UNAVAILABLE


def test_an_idle_host_is_nearer_than_one_whose_slots_are_taken() -> None:
    idle, busy, loading = SchedulerHost(A), loaded_host(A), SchedulerHost(A)
    busy.request("a")
    loading.request("a")
    for taken in (busy, loading):
        assert idle.scheduler.distance("a", 0.0) < taken.scheduler.distance("a", 0.0) < UNAVAILABLE
    assert loaded_host(A).scheduler.distance("a", 0.0) < idle.scheduler.distance("a", 0.0)


def test_a_host_that_will_be_free_before_an_idle_one_has_loaded_is_nearer() -> None:
    idle = SchedulerHost(profile("a", load_s=5.0))
    for answer_s, nearer in ((0.1, True), (60.0, False)):
        busy = loaded_host(A)
        first = busy.request("a")
        busy.advance_to(answer_s)
        busy.release(first)
        busy.request("a")
        assert (busy.scheduler.distance("a", busy.now) < idle.scheduler.distance("a", 0.0)) is nearer


def test_unknown_unfitting_and_failing_models_and_lost_hosts_are_unavailable() -> None:
    host = loaded_host(
        profile("a", memory_bytes=6), profile("huge", memory_bytes=99), profile("b", memory_bytes=6), budget=7
    )
    assert steps(host, "other") == steps(host, "huge") == UNAVAILABLE.steps
    host.request("b")
    host.fail_switch(Failure(kind="exited", message="x", retry_after_s=5.0))
    assert steps(host, "b") == UNAVAILABLE.steps
    lost = loaded_host(A, B)
    lost.note(lost.scheduler.supervisor_lost(0.0))
    assert (steps(lost, "a"), steps(lost, "b")) == (0, UNAVAILABLE.steps)


def test_the_view_shows_models_and_the_queue_in_the_order_of_service() -> None:
    host = loaded_host(A, B, max_waiting=7)
    running = host.request("a")
    low, high = host.request("b"), host.request("b", priority=5)
    view = host.scheduler.view()
    models = {model.model: model for model in view.models}
    assert (models["a"].phase, models["a"].running, models["a"].draining) == ("ready", 1, False)
    assert (models["b"].phase, models["b"].waiting) == ("cold", 2)
    assert [ticket.id for ticket in view.waiting] == [high, low]
    assert view.max_waiting == 7
    host.advance_to(10.0)
    assert {model.model: model.draining for model in host.scheduler.view().models}["a"]
    host.release(running)
