"""The order of service: priority, fair shares between clients, limits and reserved places."""

from __future__ import annotations

from fakes.scheduler_host import A, B, C, SchedulerHost, loaded_host, profile, status

from hostler.supervisor.scheduling.queue import FairQueue, ModelQueue, Ticket
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import Refuse, SchedulerSettings


def test_the_higher_priority_is_served_first() -> None:
    host = loaded_host(A, B, C)
    busy = host.request("a")
    host.request("c")
    host.request("b", priority=1)
    host.release(busy)
    assert host.loads() == ["b"]


def test_the_priority_of_a_model_is_added_to_that_of_its_requests() -> None:
    host = loaded_host(profile("a"), profile("b", priority=3), profile("c", priority=-3))
    busy = host.request("a")
    host.request("c", priority=5)
    host.request("b")
    host.release(busy)
    assert host.loads() == ["b"]


def test_the_patience_of_a_lower_priority_counts_for_the_higher_one_before_it() -> None:
    host = loaded_host(profile("a", 2), B, C, patience_s=10.0)
    host.request("a")
    host.request("c")
    host.advance_to(9.0)
    host.request("b", priority=1)
    host.advance_to(10.0)
    assert host.request("a") in host.waiting


def test_clients_share_fairly() -> None:
    host = loaded_host(A)
    swarm = [host.request("a", client="swarm") for _ in range(5)]
    chat = host.request("a", client="chat")
    host.release(swarm[0])
    host.release(swarm[1])
    assert list(host.using) == [chat]


def test_a_request_that_has_waited_at_another_host_keeps_its_place() -> None:
    host = loaded_host(A)
    busy = host.request("a", client="first")
    early = host.request("a", client="early")
    host.advance_to(4.0)
    late = [host.request("a", client=f"late{number}") for number in range(6)]
    host.advance_to(8.0)
    moved = host.request("a", client="moved", waited_s=6.0)
    order = [busy]
    while host.waiting or host.using:
        host.release(order[-1])
        order += list(host.using)
    assert order == [busy, early, moved, *late]


def test_a_request_that_has_waited_elsewhere_is_as_old_as_those_that_came_when_it_did() -> None:
    host = loaded_host(A)
    order = [host.request("a", client="first")]
    swarm = [host.request("a", client="swarm") for _ in range(4)]
    for now in (1.0, 2.0):
        host.advance_to(now)
        host.release(order[-1])
        order += list(host.using)
    assert order[1:] == swarm[:2]
    host.advance_to(3.0)
    fresh = host.request("a", client="fresh")
    moved = host.request("a", client="moved", waited_s=2.5)
    others = [host.request("a", client="moved", waited_s=2.0) for _ in range(2)]
    while host.waiting:
        host.release(order[-1])
        order += list(host.using)
    assert order[3:] == [moved, others[0], swarm[2], others[1], fresh, swarm[3]]


def test_many_requests_of_one_client_delay_another_for_a_round_and_its_patience_only() -> None:
    host = loaded_host(A, B, patience_s=10.0)
    for _ in range(8):
        host.request("a", client="swarm")
    chat = host.request("b", client="chat")
    while chat in host.waiting and host.now < 1000:
        host.advance_to(host.now + 6.0)
        for ticket in list(host.using):
            host.release(ticket)
        if host.switches:
            host.finish_switch()
    assert host.now <= 18.0 and len(host.waiting) > 3


def test_a_large_batch_is_cut_for_another_client_whose_patience_ran_out() -> None:
    host = loaded_host(A, B, patience_s=10.0)
    busy = host.request("a")
    for _ in range(6):
        host.request("b", client="swarm")
    host.request("a", client="chat")
    host.advance_to(15.0)
    host.release(busy)
    while host.loads() != ["b", "a"]:
        if host.using:
            host.advance_to(host.now + 6.0)
            host.release(next(iter(host.using)))
        else:
            host.finish_switch()
    assert len(host.waiting) >= 4 and host.now < 40.0


def test_a_ticket_is_not_overtaken_forever_by_new_clients() -> None:
    host = loaded_host(A)
    busy = host.request("a", client="x")
    host.request("a", client="x")
    patient = host.request("a", client="x")
    for number in range(20):
        host.request("a", client=str(number))
        host.release(busy)
        busy = next(iter(host.using))
        if busy == patient:
            break
    assert busy == patient and number < 10


def test_slots_bound_running_and_max_waiting_queued_requests() -> None:
    host = SchedulerHost(profile("a", 2), max_waiting=10)
    for _ in range(13):
        host.request("a")
    assert len(host.refused) == 3 and {refusal.reason for refusal in host.refused.values()} == {"queue_full"}
    host.finish_switch()
    assert len(host.using) == 2 and len(host.waiting) == 8
    host.request("a")
    host.request("a")
    assert len(host.waiting) == 10 and len(host.refused) == 3


def test_a_place_is_reserved_for_a_client_kept_out_by_another() -> None:
    host = loaded_host(A, max_waiting=4)
    swarm = [host.request("a", client="swarm") for _ in range(5)]
    chat = host.request("a", client="chat")
    assert host.refused[chat].reason == "queue_full"
    host.release(swarm[0])
    assert host.request("a", client="swarm") in host.refused
    assert host.request("a", client="chat") in host.waiting
    host.release(swarm[1])
    assert host.request("a", client="swarm") in host.waiting


def test_a_reservation_expires() -> None:
    host = loaded_host(A, max_waiting=4)
    swarm = [host.request("a", client="swarm") for _ in range(5)]
    refused = host.request("a", client="chat")
    host.advance_to(host.refused[refused].retry_after_s + 5.0)
    host.release(swarm[0])
    assert host.request("a", client="swarm") in host.waiting


def test_a_model_is_not_loaded_without_a_request() -> None:
    host = loaded_host(A, B, patience_s=0.0)
    for model in "aabb":
        host.request(model, client="x")
    host.release(1)
    host.release(2)
    host.request("a", client="y")
    host.finish_switch()
    assert list(host.using) == [3]


def test_a_full_queue_does_not_concern_a_loaded_model_with_a_free_slot() -> None:
    host = SchedulerHost(
        profile("a", memory_bytes=5), profile("b", memory_bytes=5), budget=10, states={"b": "ready"}, max_waiting=1
    )
    host.request("a")
    b = host.request("b")
    assert b in host.using


def test_a_cancelled_ticket_frees_its_place_at_once() -> None:
    host = SchedulerHost(A, max_waiting=1)
    first = host.request("a")
    host.cancel(first)
    second = host.request("a")
    assert second in host.waiting and not host.refused


def test_a_ticket_cancelled_when_granted_releases_its_slot() -> None:
    host = loaded_host(A)
    first = host.request("a")
    second = host.request("a")
    host.cancel(first)
    assert list(host.using) == [second]


def test_no_ticket_waits_longer_than_the_limit() -> None:
    host = loaded_host(A, max_wait_s=120.0)
    host.request("a")
    waits = host.request("a")
    host.advance_to(119.9)
    assert waits in host.waiting
    host.advance_to(120.0)
    assert host.refused[waits].reason == "wait_limit"


def test_the_load_of_its_own_model_does_not_count_as_waiting() -> None:
    host = SchedulerHost(A, B, max_wait_s=120.0)
    ticket = host.request("a")
    host.advance_to(1000.0)
    assert not host.refused
    second = host.request("a")
    host.finish_switch()
    assert host.served == [ticket]
    host.advance_to(1119.9)
    assert not host.refused
    host.advance_to(1120.1)
    assert set(host.refused) == {second}


def test_what_was_waited_for_others_before_a_load_still_counts_after_it() -> None:
    host = loaded_host(A, B, patience_s=0.0, max_wait_s=120.0)
    busy = host.request("a")
    host.request("b")
    late = host.request("b")
    host.advance_to(100.0)
    host.release(busy)
    assert host.loads() == ["b"]
    host.advance_to(600.0)
    host.finish_switch()
    assert late in host.waiting
    host.advance_to(619.9)
    assert not host.refused
    host.advance_to(620.1)
    assert set(host.refused) == {late}


def test_the_load_of_another_model_counts_as_waiting() -> None:
    host = SchedulerHost(A, B, max_wait_s=120.0)
    host.request("a")
    other = host.request("b")
    host.advance_to(121.0)
    assert set(host.refused) == {other}


def test_the_oldest_is_the_one_that_has_waited_longest_even_if_it_was_asked_for_again() -> None:
    fair, queue = FairQueue(), ModelQueue()
    for number, at in enumerate((95.0, 0.0, 50.0), start=1):
        queue.add(fair.join(Ticket(id=number, model="a", at=at)))
    assert queue.oldest().id == 2
    queue.remove(2)
    assert queue.oldest().id == 3
    queue.remove(1)
    assert queue.oldest().id == 3


def test_a_request_that_was_asked_for_again_ends_at_its_own_limit() -> None:
    scheduler = Scheduler(SchedulerSettings(max_wait_s=100.0))
    scheduler.apply_snapshot(status(profile("a"), states={"a": "ready"}), 0.0)
    for number, at in ((1, 90.0), (2, 95.0), (3, 0.0)):
        scheduler.request(Ticket(id=number, model="a", at=at), 95.0)
    assert scheduler.next_deadline() == 100.0
    [refused] = scheduler.tick(101.0)
    assert isinstance(refused, Refuse) and (refused.ticket, refused.reason) == (3, "wait_limit")
