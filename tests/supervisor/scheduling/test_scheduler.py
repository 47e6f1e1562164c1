"""What one host grants, refuses, loads and stops: sentences for the rules. The promises are in test_scheduler_simulation."""

from __future__ import annotations

import math
import time

import pytest
from fakes.scheduler_host import SETTINGS, A, B, C, SchedulerHost, loaded_host, profile, status

from hostler.supervisor.contract import Failure
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import Grant, Refuse, StartSwitch, Unload


def test_loads_a_model_once_for_all_queued_requests() -> None:
    host = SchedulerHost(profile("a", 6))
    for _ in range(6):
        host.request("a")
    assert host.loads() == ["a"] and not host.served
    host.finish_switch()
    assert host.served == [1, 2, 3, 4, 5, 6]


def test_grants_a_loaded_model_at_once() -> None:
    host = loaded_host(A)
    host.request("a")
    assert host.served == [1] and not host.switches


@pytest.mark.parametrize("loading", [False, True])
def test_a_loaded_model_costs_as_little_beside_a_thousand_others(loading: bool) -> None:
    def quickest(others: int) -> float:
        crowd = [profile(f"m{number}", memory_bytes=1) for number in range(others)]
        host = loaded_host(profile("a", 2, memory_bytes=1), profile("b", memory_bytes=1), *crowd, budget=10)
        scheduler, seconds = host.scheduler, []
        if loading:
            scheduler.request(Ticket(id=9, model="a", at=0.0), 0.0)
            host.request("b")
        for number in range(10, 60):
            began = time.perf_counter()
            assert len(scheduler.request(Ticket(id=number, model="a", at=0.0), 0.0)) == 1
            assert not scheduler.release(number, 0.0)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    assert quickest(1000) < 10 * quickest(0)


def test_a_model_whose_last_ticket_was_cancelled_is_never_loaded() -> None:
    host = loaded_host(A, B)
    busy = host.request("a")
    host.cancel(host.request("b"))
    host.release(busy)
    host.advance_to(500.0)
    assert not host.switches


def test_a_load_whose_last_ticket_was_cancelled_is_finished_and_kept_for_its_idle_time() -> None:
    host = SchedulerHost(profile("a", ttl_s=60.0))
    host.cancel(host.request("a"))
    host.now = 5.0
    host.finish_switch()
    host.advance_to(64.9)
    assert not host.unloads
    host.advance_to(65.0)
    assert host.unloads == ["a"]


def test_the_idle_time_counts_from_the_last_answer_and_never_ends_in_one() -> None:
    host = loaded_host(profile("a", ttl_s=2.0))
    host.advance_to(1.9)
    answer = host.request("a")
    host.advance_to(50.0)
    host.release(answer)
    host.advance_to(51.9)
    assert not host.unloads
    host.advance_to(52.0)
    assert host.unloads == ["a"]


@pytest.mark.parametrize(("keep_alive_s", "unloaded_at"), [(0.0, 1.0), (5.0, 6.0), (None, 3.0), (math.inf, None)])
def test_keep_alive_replaces_the_idle_time(keep_alive_s: float | None, unloaded_at: float | None) -> None:
    host = loaded_host(profile("a", ttl_s=2.0))
    answer = host.request("a")
    host.now = 1.0
    host.release(answer, keep_alive_s)
    assert host.scheduler.next_deadline() == (unloaded_at if unloaded_at != 1.0 else None)
    host.advance_to(1000.0)
    assert host.unloads == ([] if unloaded_at is None else ["a"])


def test_without_an_idle_time_a_model_stays_loaded() -> None:
    host = loaded_host(A)
    host.release(host.request("a"))
    assert host.scheduler.next_deadline() is None


def test_a_request_during_an_idle_stop_gets_a_fresh_process() -> None:
    host = loaded_host(profile("a", ttl_s=2.0))
    host.advance_to(2.0)
    ticket = host.request("a")
    assert ticket in host.waiting and not host.switches
    host.note(host.scheduler.process_ended("a", 3.0))
    assert host.loads() == ["a"]
    host.finish_switch()
    assert host.served == [ticket]


def test_an_unload_during_a_load_leaves_no_stale_result_for_the_next_request() -> None:
    host = SchedulerHost(A)
    first = host.request("a")
    old = host.switches[0]
    host.note(host.scheduler.unload("a", 1.0))
    assert host.refused[first].reason == "unloaded" and host.unloads == ["a"]
    second = host.request("a")
    host.note(host.scheduler.load_failed(old.id, "a", 1.5, Failure(kind="cancelled", message="stopped")))
    assert second in host.waiting
    host.note(host.scheduler.process_ended("a", 2.0))
    assert host.loads() == ["a", "a"]
    host.note(host.scheduler.loaded(old.id, "a", 2.5))
    assert second in host.waiting
    host.finish_switch()
    assert host.served == [second]


def test_an_unload_lets_running_answers_end_first() -> None:
    host = loaded_host(profile("a", 2))
    answer = host.request("a")
    host.note(host.scheduler.unload("a", 1.0))
    later = host.request("a")
    assert not host.unloads and later in host.waiting
    host.release(answer)
    assert host.unloads == ["a"]
    host.note(host.scheduler.process_ended("a", 2.0))
    host.finish_switch()
    assert host.served == [answer, later]


def test_a_forced_unload_stops_at_once_and_its_leases_free_nothing_later() -> None:
    host = loaded_host(A)
    answer = host.request("a")
    host.note(host.scheduler.unload("a", 1.0, force=True))
    assert host.unloads == ["a"]
    host.note(host.scheduler.process_ended("a", 1.1))
    fresh = host.request("a")
    host.finish_switch()
    host.release(answer)
    assert list(host.using) == [fresh]
    assert host.request("a") in host.waiting


def test_unloading_a_queued_model_refuses_its_queue_and_no_other() -> None:
    host = loaded_host(A, B, C)
    host.request("a")
    b, c = host.request("b"), host.request("c")
    host.note(host.scheduler.unload("b", 0.0))
    assert host.refused[b].reason == "unloaded" and c in host.waiting and not host.unloads


def test_a_slow_stop_does_not_concern_other_models() -> None:
    host = SchedulerHost(
        profile("a", 2, memory_bytes=5), profile("b", memory_bytes=5), budget=10, states={"a": "ready", "b": "ready"}
    )
    host.note(host.scheduler.unload("b", 0.0))
    ticket = host.request("a")
    assert ticket in host.using


FAILURE = Failure(kind="out_of_memory", message="does not fit", retry_after_s=30.0)


def test_a_failed_load_refuses_the_models_queue() -> None:
    host = SchedulerHost(A, B)
    host.request("a")
    host.request("a")
    b = host.request("b")
    host.fail_switch(FAILURE)
    assert {refusal.failure for refusal in host.refused.values()} == {FAILURE}
    assert host.loads() == ["a", "b"] and b in host.waiting


def test_a_model_that_fails_fast_does_not_cost_another_its_place() -> None:
    host = SchedulerHost(A, B)
    host.request("b")
    host.fail_switch(FAILURE)
    host.request("a")
    host.finish_switch()
    refused = host.request("b")
    assert host.refused[refused].reason == "load_failed" and host.refused[refused].retry_after_s == 30.0
    assert host.loads() == ["b", "a"]
    host.advance_to(30.0)
    host.release(next(iter(host.using)))
    host.request("b")
    assert host.loads() == ["b", "a", "b"]


def test_a_failed_load_is_tried_again_by_the_next_request() -> None:
    host = SchedulerHost(A)
    host.request("a")
    host.fail_switch(Failure(kind="exited", message="went away"))
    second = host.request("a")
    host.finish_switch()
    assert host.served == [second]


def test_the_previous_model_comes_back_after_a_failed_switch() -> None:
    host = loaded_host(A, B)
    host.request("b")
    host.fail_switch(FAILURE)
    assert host.loads() == ["b", "a"]
    host.fail_switch(FAILURE)
    assert host.loads() == ["b", "a"], "once is enough"


def test_a_crash_while_idle_is_repaired_by_the_next_request() -> None:
    host = loaded_host(A)
    host.note(host.scheduler.process_ended("a", 1.0))
    ticket = host.request("a")
    host.finish_switch()
    assert host.served == [ticket]


def test_a_crash_restarts_the_model_for_its_queue() -> None:
    host = loaded_host(A)
    crashed, waits = host.request("a"), host.request("a")
    host.note(host.scheduler.process_ended("a", 1.0))
    host.release(crashed)
    host.finish_switch()
    assert list(host.using) == [waits]


def test_a_late_event_of_an_old_process_does_not_end_a_load() -> None:
    host = loaded_host(A)
    host.note(host.scheduler.process_ended("a", 1.0))
    ticket = host.request("a")
    host.note(host.scheduler.process_ended("a", 1.1))
    host.finish_switch()
    assert host.served == [ticket]


def test_a_foreign_load_is_adopted() -> None:
    host = SchedulerHost(A, states={"a": "starting"})
    ticket = host.request("a")
    assert [(order.model, order.evict) for order in host.switches] == [("a", ())]
    host.finish_switch()
    assert host.served == [ticket]


def test_a_snapshot_repairs_what_was_missed() -> None:
    host = loaded_host(A, B)
    host.note(host.scheduler.apply_snapshot(status(A, B, states={"b": "ready"}), 0.0))
    host.request("b")
    assert host.served == [1]
    host.release(1)
    host.request("a")
    assert host.switches[0].evict == ("b",)


def test_a_snapshot_from_before_an_order_does_not_undo_it() -> None:
    host = SchedulerHost(A)
    host.request("a")
    host.note(host.scheduler.apply_snapshot(status(A, states={"a": "stopped"}), 1.0))
    host.finish_switch()
    assert host.served == [1] and host.loads() == ["a"]


def test_a_profile_that_was_removed_is_unknown() -> None:
    host = loaded_host(A, B)
    host.request("a")
    waits = host.request("b")
    host.note(host.scheduler.apply_snapshot(status(A, states={"a": "ready"}), 1.0))
    assert host.refused[waits].reason == "unknown_model"
    assert host.refused[host.request("b")].reason == "unknown_model"


def test_a_reload_that_changes_nothing_touches_nothing() -> None:
    host = loaded_host(A, B)
    answer, waits = host.request("a"), host.request("b")
    assert host.note(host.scheduler.apply_snapshot(status(A, B, states={"a": "ready"}), 1.0)) == []
    assert answer in host.using and waits in host.waiting


def test_a_lost_host_refuses_queued_tickets_but_not_ready_models() -> None:
    host = loaded_host(profile("a", 2), B)
    host.request("a")
    waits = host.request("b")
    host.note(host.scheduler.supervisor_lost(1.0))
    assert host.refused[waits].reason == "host_gone"
    assert host.refused[host.request("b")].reason == "host_gone"
    assert host.request("a") in host.using


def test_a_lost_host_lifts_its_barriers() -> None:
    host = loaded_host(profile("a", 2), B, patience_s=1.0, max_waiting=1)
    host.request("a")
    host.request("b")
    host.advance_to(2.0)
    host.note(host.scheduler.supervisor_lost(2.0))
    assert host.request("a") in host.using


def test_nothing_is_queued_before_the_first_snapshot() -> None:
    scheduler = Scheduler(SETTINGS)
    [decision] = scheduler.request(Ticket(id=1, model="a", at=0.0), 0.0)
    assert isinstance(decision, Refuse) and decision.reason == "host_gone"


def test_a_ticket_id_in_use_is_an_error() -> None:
    host = loaded_host(A)
    host.request("a")
    with pytest.raises(ValueError, match="ticket 1"):
        host.scheduler.request(Ticket(id=1, model="a", at=0.0), 0.0)


# Random histories, on a host with loads, stops and answers that take their time.


def test_an_engine_that_is_given_up_stops_at_once_and_what_is_queued_for_it_stays_queued() -> None:
    scheduler = Scheduler(SETTINGS)
    scheduler.apply_snapshot(status(profile("a"), states={"a": "ready"}), 0.0)
    scheduler.request(Ticket(id=1, model="a", at=0.0), 0.0)
    scheduler.request(Ticket(id=2, model="a", at=1.0), 1.0)
    assert scheduler.give_up("a", 2.0) == [Unload(model="a")]
    assert scheduler.give_up("a", 3.0) == scheduler.release(1, 3.0) == []
    [switch] = scheduler.unloaded("a", 4.0)
    assert switch == StartSwitch(id=1, model="a")
    assert scheduler.loaded(1, "a", 5.0) == [Grant(ticket=2, model="a")]
    assert scheduler.give_up("b", 6.0) == []
