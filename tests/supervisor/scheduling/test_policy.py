"""Which models are loaded and evicted, and when: patience, residency and shared memory."""

from __future__ import annotations

from collections import deque

import pytest
from fakes.scheduler_host import A, B, C, SchedulerHost, loaded_host, profile, status

from hostler.supervisor.contract import DeviceStatus


def test_an_idle_model_is_evicted_at_once() -> None:
    host = loaded_host(A, B)
    host.request("b")
    assert [(order.model, order.evict) for order in host.switches] == [("b", ("a",))]


def test_an_answer_in_progress_ends_before_its_model_is_evicted() -> None:
    host = loaded_host(A, B)
    answer = host.request("a")
    host.request("b")
    host.advance_to(60.0)
    assert not host.switches
    host.release(answer)
    assert host.loads() == ["b"]


@pytest.mark.parametrize("patience_s", [1.0, 10.0])
@pytest.mark.parametrize("clients", ["", "123456"])
def test_a_b_a_b_a_b_is_one_switch(patience_s: float, clients: str) -> None:
    host = loaded_host(A, B, patience_s=patience_s)
    first = host.request("a")
    for number, model in enumerate("babab"):
        host.request(model, client=clients[number:][:1])
    host.advance_to(0.5)
    for ticket in (first, 3, 5):
        host.release(ticket)
    assert host.loads() == ["b"]
    host.finish_switch()
    for ticket in (2, 4, 6):
        host.release(ticket)
    assert not host.using


def test_a_batch_is_served_together_though_another_model_is_due() -> None:
    host = loaded_host(A, B)
    busy = host.request("a")
    host.now = 1.0
    b1, a2, b2, a3, b3 = (host.request(model) for model in "babab")
    host.advance_to(20.0)
    host.release(busy)
    host.advance_to(40.0)
    host.finish_switch()
    for ticket in (b1, b2, b3):
        host.advance_to(host.now + 15.0)
        assert list(host.using) == [ticket]
        host.release(ticket)
    assert host.loads() == ["b", "a"]
    host.finish_switch()
    assert list(host.using) == [a2]
    host.release(a2)
    assert list(host.using) == [a3]


def test_steady_traffic_is_admitted_until_patience_runs_out() -> None:
    host = loaded_host(profile("a", 4), B, patience_s=10.0)
    first = host.request("a")
    b = host.request("b")
    host.advance_to(9.9)
    overtakes = host.request("a")
    host.advance_to(10.0)
    waits = host.request("a")
    assert host.served == [first, overtakes] and not host.switches
    host.release(first)
    host.release(overtakes)
    host.finish_switch()
    assert host.served == [first, overtakes, b] and waits in host.waiting


def test_earlier_requests_are_admitted_past_the_barrier() -> None:
    host = loaded_host(A, B, patience_s=1.0)
    first, second, b, later = host.request("a"), host.request("a"), host.request("b"), host.request("a")
    host.advance_to(30.0)
    host.release(first)
    assert list(host.using) == [second]
    host.release(second)
    host.finish_switch()
    assert list(host.using) == [b] and later in host.waiting


def test_the_barrier_ends_when_its_request_is_cancelled() -> None:
    host = loaded_host(profile("a", 2), B, patience_s=1.0)
    first, b = host.request("a"), host.request("b")
    host.advance_to(5.0)
    second = host.request("a")
    assert second in host.waiting
    host.cancel(b)
    assert list(host.using) == [first, second] and not host.switches


def test_a_model_stays_for_its_minimum_residency() -> None:
    host = loaded_host(A, B, min_residency_s=30.0)
    host.request("b")
    host.advance_to(29.9)
    assert not host.switches
    host.advance_to(30.0)
    assert host.loads() == ["b"]


def test_models_that_fit_beside_each_other_load_in_parallel() -> None:
    host = SchedulerHost(profile("a", memory_bytes=4), profile("b", memory_bytes=4), budget=10)
    host.request("a")
    host.request("b")
    assert [(order.model, order.evict) for order in host.switches] == [("a", ()), ("b", ())]


def test_models_that_waited_for_the_same_memory_load_in_parallel_when_it_is_free() -> None:
    host = loaded_host(*(profile(name, memory_bytes=size) for name, size in (("c", 10), ("a", 4), ("b", 4))), budget=10)
    host.request("c")
    host.request("a")
    host.request("b")
    assert not host.switches
    host.note(host.scheduler.process_ended("c", 1.0))
    assert [(order.model, order.evict) for order in host.switches] == [("a", ()), ("b", ())]


def test_a_pinned_model_keeps_running_beside_an_exclusive_one() -> None:
    host = SchedulerHost(profile("p", pinned=True, ttl_s=1.0), A, B, states={"p": "ready", "a": "ready"})
    host.request("b")
    assert host.switches[0].evict == ("a",)
    host.advance_to(100.0)
    assert not host.unloads
    host.request("p")
    assert host.served == [2]


def test_a_model_that_is_pinned_while_it_runs_stays_and_idles_from_the_moment_it_is_not() -> None:
    host = SchedulerHost(profile("p", ttl_s=5.0), A, states={"p": "ready"})
    host.advance_to(4.0)
    host.note(
        host.scheduler.apply_snapshot(status(profile("p", ttl_s=5.0, pinned=True), A, states={"p": "ready"}), host.now)
    )
    host.advance_to(100.0)
    assert not host.unloads
    host.request("a")
    assert host.switches[0].evict == ()
    host.note(host.scheduler.apply_snapshot(status(profile("p", ttl_s=5.0), A, states={"p": "ready"}), host.now))
    host.advance_to(104.0)
    assert not host.unloads
    host.advance_to(105.0)
    assert host.unloads == ["p"]


def test_switches_that_need_the_same_memory_do_not_overlap() -> None:
    host = loaded_host(A, B, C)
    b, c = host.request("b"), host.request("c")
    assert host.loads() == ["b"]
    host.advance_to(60.0)
    assert host.loads() == ["b"]
    host.finish_switch()
    assert host.served == [b] and host.loads() == ["b"]
    host.release(b)
    assert host.loads() == ["b", "c"] and host.switches[-1].evict == ("b",)
    host.finish_switch()
    assert host.served == [b, c]


def test_memory_that_is_not_free_yet_is_not_given_away() -> None:
    sizes = [profile(name, memory_bytes=size) for name, size in (("a", 8), ("b", 8), ("c", 2))]
    host = loaded_host(*sizes, budget=10)
    host.request("b")
    host.request("c")
    assert host.loads() == ["b"], "a is still there while it stops, and b needs its room"
    host.note(host.scheduler.process_ended("a", 1.0))
    assert host.loads() == ["b", "c"]


def test_a_small_model_does_not_take_the_memory_that_a_large_one_waits_for() -> None:
    sizes = [profile(name, memory_bytes=size) for name, size in (("a", 5), ("b", 10), ("c", 5))]
    host = loaded_host(*sizes, budget=10)
    busy = host.request("a")
    host.request("b")
    host.request("c")
    assert not host.switches
    host.release(busy)
    assert host.loads() == ["b"]


def test_a_model_that_can_never_fit_is_refused_at_once() -> None:
    host = SchedulerHost(profile("huge", memory_bytes=11), budget=10)
    host.request("huge")
    assert host.refused[1].reason == "does_not_fit" and not host.waiting


def test_two_busy_models_are_not_drained_in_turns() -> None:
    sizes = [profile("a", 2, memory_bytes=5), profile("b", 2, memory_bytes=5), profile("c", memory_bytes=5)]
    host = SchedulerHost(*sizes, budget=10, states={"a": "ready", "b": "ready"}, patience_s=1.0)
    running = {name: deque([host.request(name), host.request(name)]) for name in "ab"}
    host.request("c")
    for step in range(20):
        host.advance_to(1.0 + step)
        for name in "ab":
            if running[name]:
                host.release(running[name].popleft())
            another = host.request(name)
            if another in host.using:
                running[name].append(another)
            else:
                host.cancel(another)
        if host.switches:
            break
    assert host.loads() == ["c"] and host.now < 5.0


def gpu(*, yielding: bool = True) -> tuple[DeviceStatus, ...]:
    return (DeviceStatus(name="gpu0", yielding=yielding),)


def test_idle_models_leave_one_by_one_while_other_programs_need_their_gpu() -> None:
    on_gpu = {"device_bytes": {"gpu0": 1}}
    host = SchedulerHost(
        profile("a", **on_gpu), profile("b", **on_gpu), profile("cpu"), profile("busy", **on_gpu), profile("p", pinned=True, **on_gpu),
        states=dict.fromkeys(("a", "b", "cpu", "busy", "p"), "ready"), limits={"exclusive": False},
    )  # fmt: skip
    host.now = 1.0
    host.request("busy")
    host.release(host.request("a"))
    host.note(host.scheduler.apply_devices(gpu(), 2.0))
    assert host.unloads == ["b"]
    host.note(host.scheduler.apply_devices(gpu(), 3.0))
    assert host.unloads == ["b"], "the memory of the first one is not free yet"
    host.note(host.scheduler.unloaded("b", 4.0))
    host.note(host.scheduler.apply_devices(gpu(), 5.0))
    host.note(host.scheduler.unloaded("a", 6.0))
    host.note(host.scheduler.apply_devices(gpu(), 7.0))
    assert host.unloads == ["b", "a"]
    host.note(host.scheduler.apply_devices(gpu(yielding=False), 8.0))
    assert host.unloads == ["b", "a"]


def test_a_reading_that_leaves_less_memory_refuses_what_does_not_fit() -> None:
    host = SchedulerHost(
        profile("a", device_bytes={"gpu0": 8}), limits={"devices": (DeviceStatus(name="gpu0", capacity_bytes=9),)}
    )
    host.note(host.scheduler.apply_devices((DeviceStatus(name="gpu0", capacity_bytes=7),), 1.0))
    refused = host.request("a")
    assert host.refused[refused].reason == "does_not_fit"
    host.note(host.scheduler.apply_devices((DeviceStatus(name="gpu0", capacity_bytes=9),), 2.0))
    host.request("a")
    assert host.loads() == ["a"]


DEFAULT = profile("a", default=True)
RETURNS = {"return_to_default_s": 60.0}


def returning_host() -> SchedulerHost:
    """The default model had to go for another one, which has just become idle."""
    host = loaded_host(DEFAULT, B, limits={"exclusive": True, **RETURNS})
    answer = host.request("b")
    host.finish_switch()
    host.advance_to(10.0)
    host.release(answer)
    return host


def test_the_default_model_returns_when_the_host_was_idle_long_enough() -> None:
    host = returning_host()
    host.advance_to(69.0)
    assert host.loads() == ["b"]
    host.advance_to(70.0)
    assert [(order.model, order.evict) for order in host.switches[1:]] == [("a", ("b",))]
    host.finish_switch()
    host.advance_to(1000.0)
    assert len(host.switches) == 2


def test_a_request_in_the_meantime_starts_the_idle_time_again() -> None:
    host = returning_host()
    host.advance_to(50.0)
    host.release(host.request("b"))
    host.advance_to(109.0)
    assert host.loads() == ["b"]
    host.advance_to(110.0)
    assert host.loads() == ["b", "a"]


def test_a_default_model_that_was_unloaded_on_request_stays_unloaded() -> None:
    host = loaded_host(DEFAULT, B, limits={"exclusive": True, **RETURNS})
    host.note(host.scheduler.unload("a", 1.0))
    host.note(host.scheduler.unloaded("a", 2.0))
    host.advance_to(1000.0)
    assert not host.switches


def test_a_default_model_that_cannot_be_loaded_is_tried_again_after_the_idle_time_only() -> None:
    host = returning_host()
    host.advance_to(70.0)
    host.fail_switch()
    assert host.loads() == ["b", "a", "b"], "the previous model is loaded again"
    host.finish_switch()
    host.advance_to(129.0)
    assert len(host.switches) == 3
    host.advance_to(131.0)
    assert host.loads() == ["b", "a", "b", "a"]


def test_a_profile_that_allows_more_requests_takes_effect_at_once() -> None:
    host = loaded_host(A)
    host.request("a")
    waiting = host.request("a")
    host.note(host.scheduler.apply_snapshot(status(profile("a", max_concurrent=2), states={"a": "ready"}), 1.0))
    assert waiting in host.using
    host.note(host.scheduler.apply_snapshot(status(A, states={"a": "ready"}), 2.0))
    assert host.request("a") not in host.using
