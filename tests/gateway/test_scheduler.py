"""Who gets which model when: sentences for the rules, thousands of random histories for the promises."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.gateway.scheduling.queue import Ticket
from hostler.gateway.scheduling.scheduler import Scheduler
from hostler.gateway.scheduling.types import Decision, Grant, Refuse, SchedulerSettings, StartSwitch, Unload
from hostler.supervisor.contract import Failure, HostStatus, ModelStatus, ProfileInfo

RULES = SchedulerSettings()


def status(*profiles: ProfileInfo, budget: int | None = None, states: dict[str, str] | None = None) -> HostStatus:
    models = tuple(ModelStatus(model=name, state=state, since=0.0) for name, state in (states or {}).items())  # type: ignore[arg-type]
    return HostStatus(profiles=profiles, models=models, exclusive=budget is None, budget_bytes=budget)


def profile(name: str, parallel: int = 1, **more: object) -> ProfileInfo:
    return ProfileInfo(name=name, parallel=parallel, **more)  # type: ignore[arg-type]  # passes the other fields on


class Desk:
    """A scheduler with a clock, which notes what it decided and sees to it that it keeps its promises."""

    def __init__(
        self, *profiles: ProfileInfo, budget: int | None = None, states: dict[str, str] | None = None, **rules: float
    ) -> None:
        self.now = 0.0
        self.profiles = profiles
        self.scheduler = Scheduler(msgspec.structs.replace(RULES, **rules))
        self.served: list[int] = []
        self.refused: dict[int, Refuse] = {}
        self.switches: list[StartSwitch] = []
        self.unloads: list[str] = []
        self.using: dict[int, str] = {}
        self.waiting: set[int] = set()
        self._ids = itertools.count(1)
        self.note(self.scheduler.apply_snapshot(status(*profiles, budget=budget, states=states), 0.0))

    def note(self, decisions: list[Decision]) -> list[Decision]:
        for decision in decisions:
            if isinstance(decision, Grant | Refuse):
                assert decision.ticket in self.waiting, "granted or refused twice, or after it left"
                self.waiting.discard(decision.ticket)
            if isinstance(decision, Grant):
                self.served.append(decision.ticket)
                self.using[decision.ticket] = decision.model
            elif isinstance(decision, Refuse):
                assert decision.retry_after_s >= 0
                self.refused[decision.ticket] = decision
            elif isinstance(decision, StartSwitch):
                assert not set(decision.evict) & set(self.using.values()), "stopped while serving"
                self.switches.append(decision)
            else:
                self.unloads.append(decision.model)
        return decisions

    def ask(self, model: str, client: str = "", priority: int = 0) -> int:
        number = next(self._ids)
        self.waiting.add(number)
        ticket = Ticket(id=number, model=model, at=self.now, client=client, priority=priority)
        self.note(self.scheduler.request(ticket, self.now))
        return number

    def done(self, ticket: int, keep_alive_s: float | None = None) -> None:
        self.using.pop(ticket)
        self.note(self.scheduler.release(ticket, self.now, keep_alive_s))

    def leave(self, ticket: int) -> None:
        self.waiting.discard(ticket)
        self.using.pop(ticket, None)
        self.note(self.scheduler.cancel(ticket, self.now))

    def ready(self, parallel: int = 0) -> None:
        """The switch that was ordered last is done."""
        order = self.switches[-1]
        self.note(self.scheduler.loaded(order.id, order.model, self.now, parallel))

    def fails(self, failure: Failure | None = None) -> None:
        order = self.switches[-1]
        self.note(self.scheduler.load_failed(order.id, order.model, self.now, failure))

    def until(self, now: float) -> None:
        """Time passes; whatever is due on the way happens."""
        while (due := self.scheduler.next_deadline()) is not None and due <= now:
            self.now = max(self.now, due)
            self.note(self.scheduler.tick(self.now))
            assert self.scheduler.next_deadline() != due, "a tick that was due must have moved on"
        self.now = now

    def loads(self) -> list[str]:
        return [order.model for order in self.switches]


def serving(*profiles: ProfileInfo, budget: int | None = None, **rules: float) -> Desk:
    """A desk whose first model is ready."""
    return Desk(*profiles, budget=budget, states={profiles[0].name: "ready"}, **rules)


A, B, C = profile("a"), profile("b"), profile("c")


def test_loads_a_model_once_for_everybody_who_waits_for_it() -> None:
    desk = Desk(profile("a", 6))
    for _ in range(6):
        desk.ask("a")
    assert desk.loads() == ["a"] and not desk.served
    desk.ready()
    assert desk.served == [1, 2, 3, 4, 5, 6]


def test_grants_a_loaded_model_at_once() -> None:
    desk = serving(A)
    desk.ask("a")
    assert desk.served == [1] and not desk.switches


@pytest.mark.parametrize("loading", [False, True])
def test_a_loaded_model_costs_as_little_beside_a_thousand_others(loading: bool) -> None:
    def quickest(others: int) -> float:
        crowd = [profile(f"m{number}", memory_bytes=1) for number in range(others)]
        desk = serving(profile("a", 2, memory_bytes=1), profile("b", memory_bytes=1), *crowd, budget=10)
        scheduler, seconds = desk.scheduler, []
        if loading:
            scheduler.request(Ticket(id=9, model="a", at=0.0), 0.0)
            desk.ask("b")
        for number in range(10, 60):
            began = time.perf_counter()
            assert len(scheduler.request(Ticket(id=number, model="a", at=0.0), 0.0)) == 1
            assert not scheduler.release(number, 0.0)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    assert quickest(1000) < 10 * quickest(0)


def test_an_idle_model_makes_room_at_once() -> None:
    desk = serving(A, B)
    desk.ask("b")
    assert [(order.model, order.evict) for order in desk.switches] == [("b", ("a",))]


def test_an_answer_in_progress_ends_before_its_model_goes() -> None:
    desk = serving(A, B)
    answer = desk.ask("a")
    desk.ask("b")
    desk.until(60.0)
    assert not desk.switches
    desk.done(answer)
    assert desk.loads() == ["b"]


@pytest.mark.parametrize("patience_s", [1.0, 10.0])
@pytest.mark.parametrize("clients", ["", "123456"])
def test_a_b_a_b_a_b_is_one_switch(patience_s: float, clients: str) -> None:
    desk = serving(A, B, patience_s=patience_s)
    first = desk.ask("a")
    for number, model in enumerate("babab"):
        desk.ask(model, client=clients[number:][:1])
    desk.until(0.5)
    for ticket in (first, 3, 5):
        desk.done(ticket)
    assert desk.loads() == ["b"]
    desk.ready()
    for ticket in (2, 4, 6):
        desk.done(ticket)
    assert not desk.using


def test_those_who_waited_for_a_model_are_served_together_though_another_is_impatient() -> None:
    desk = serving(A, B)
    busy = desk.ask("a")
    desk.now = 1.0
    b1, a2, b2, a3, b3 = (desk.ask(model) for model in "babab")
    desk.until(20.0)
    desk.done(busy)
    desk.until(40.0)
    desk.ready()
    for ticket in (b1, b2, b3):
        desk.until(desk.now + 15.0)
        assert list(desk.using) == [ticket]
        desk.done(ticket)
    assert desk.loads() == ["b", "a"]
    desk.ready()
    assert list(desk.using) == [a2]
    desk.done(a2)
    assert list(desk.using) == [a3]


def test_steady_traffic_is_let_in_until_patience_runs_out_and_no_longer() -> None:
    desk = serving(profile("a", 4), B, patience_s=10.0)
    first = desk.ask("a")
    b = desk.ask("b")
    desk.until(9.9)
    overtakes = desk.ask("a")
    desk.until(10.0)
    waits = desk.ask("a")
    assert desk.served == [first, overtakes] and not desk.switches
    desk.done(first)
    desk.done(overtakes)
    desk.ready()
    assert desk.served == [first, overtakes, b] and waits in desk.waiting


def test_those_who_came_before_the_impatient_one_still_get_in() -> None:
    desk = serving(A, B, patience_s=1.0)
    first, second, b, later = desk.ask("a"), desk.ask("a"), desk.ask("b"), desk.ask("a")
    desk.until(30.0)
    desk.done(first)
    assert list(desk.using) == [second]
    desk.done(second)
    desk.ready()
    assert list(desk.using) == [b] and later in desk.waiting


def test_the_traffic_goes_on_when_the_impatient_one_leaves() -> None:
    desk = serving(profile("a", 2), B, patience_s=1.0)
    first, b = desk.ask("a"), desk.ask("b")
    desk.until(5.0)
    second = desk.ask("a")
    assert second in desk.waiting
    desk.leave(b)
    assert list(desk.using) == [first, second] and not desk.switches


def test_a_model_stays_for_its_minimum_residency() -> None:
    desk = serving(A, B, min_residency_s=30.0)
    desk.ask("b")
    desk.until(29.9)
    assert not desk.switches
    desk.until(30.0)
    assert desk.loads() == ["b"]


def test_models_that_fit_beside_each_other_load_in_parallel() -> None:
    desk = Desk(profile("a", memory_bytes=4), profile("b", memory_bytes=4), budget=10)
    desk.ask("a")
    desk.ask("b")
    assert [(order.model, order.evict) for order in desk.switches] == [("a", ()), ("b", ())]


def test_models_that_waited_for_the_same_room_load_in_parallel_when_it_is_free() -> None:
    desk = serving(*(profile(name, memory_bytes=size) for name, size in (("c", 10), ("a", 4), ("b", 4))), budget=10)
    desk.ask("c")
    desk.ask("a")
    desk.ask("b")
    assert not desk.switches
    desk.note(desk.scheduler.process_ended("c", 1.0))
    assert [(order.model, order.evict) for order in desk.switches] == [("a", ()), ("b", ())]


def test_a_pinned_model_keeps_running_beside_an_exclusive_one() -> None:
    desk = Desk(profile("p", pinned=True, ttl_s=1.0), A, B, states={"p": "ready", "a": "ready"})
    desk.ask("b")
    assert desk.switches[0].evict == ("a",)
    desk.until(100.0)
    assert not desk.unloads
    desk.ask("p")
    assert desk.served == [2]


def test_a_model_that_is_pinned_while_it_runs_stays_and_idles_from_the_moment_it_is_not() -> None:
    desk = Desk(profile("p", ttl_s=5.0), A, states={"p": "ready"})
    desk.until(4.0)
    desk.note(
        desk.scheduler.apply_snapshot(status(profile("p", ttl_s=5.0, pinned=True), A, states={"p": "ready"}), desk.now)
    )
    desk.until(100.0)
    assert not desk.unloads
    desk.ask("a")
    assert desk.switches[0].evict == ()
    desk.note(desk.scheduler.apply_snapshot(status(profile("p", ttl_s=5.0), A, states={"p": "ready"}), desk.now))
    desk.until(104.0)
    assert not desk.unloads
    desk.until(105.0)
    assert desk.unloads == ["p"]


def test_switches_that_need_the_same_room_do_not_overlap() -> None:
    desk = serving(A, B, C)
    b, c = desk.ask("b"), desk.ask("c")
    assert desk.loads() == ["b"]
    desk.until(60.0)
    assert desk.loads() == ["b"]
    desk.ready()
    assert desk.served == [b] and desk.loads() == ["b"]
    desk.done(b)
    assert desk.loads() == ["b", "c"] and desk.switches[-1].evict == ("b",)
    desk.ready()
    assert desk.served == [b, c]


def test_room_that_is_not_free_yet_is_not_given_away() -> None:
    sizes = [profile(name, memory_bytes=size) for name, size in (("a", 8), ("b", 8), ("c", 2))]
    desk = serving(*sizes, budget=10)
    desk.ask("b")
    desk.ask("c")
    assert desk.loads() == ["b"], "a is still there while it stops, and b needs its room"
    desk.note(desk.scheduler.process_ended("a", 1.0))
    assert desk.loads() == ["b", "c"]


def test_a_small_model_does_not_take_the_room_that_a_large_one_waits_for() -> None:
    sizes = [profile(name, memory_bytes=size) for name, size in (("a", 5), ("b", 10), ("c", 5))]
    desk = serving(*sizes, budget=10)
    busy = desk.ask("a")
    desk.ask("b")
    desk.ask("c")
    assert not desk.switches
    desk.done(busy)
    assert desk.loads() == ["b"]


def test_a_model_that_can_never_fit_is_refused_at_once() -> None:
    desk = Desk(profile("huge", memory_bytes=11), budget=10)
    desk.ask("huge")
    assert desk.refused[1].reason == "does_not_fit" and not desk.waiting


def test_two_busy_models_do_not_take_turns_in_being_drained() -> None:
    sizes = [profile("a", 2, memory_bytes=5), profile("b", 2, memory_bytes=5), profile("c", memory_bytes=5)]
    desk = Desk(*sizes, budget=10, states={"a": "ready", "b": "ready"}, patience_s=1.0)
    running = {name: deque([desk.ask(name), desk.ask(name)]) for name in "ab"}
    desk.ask("c")
    for step in range(20):
        desk.until(1.0 + step)
        for name in "ab":
            if running[name]:
                desk.done(running[name].popleft())
            another = desk.ask(name)
            if another in desk.using:
                running[name].append(another)
            else:
                desk.leave(another)
        if desk.switches:
            break
    assert desk.loads() == ["c"] and desk.now < 5.0


def test_the_higher_priority_is_served_first() -> None:
    desk = serving(A, B, C)
    busy = desk.ask("a")
    desk.ask("c")
    desk.ask("b", priority=1)
    desk.done(busy)
    assert desk.loads() == ["b"]


def test_the_patience_of_a_lower_priority_counts_for_the_higher_one_before_it() -> None:
    desk = serving(profile("a", 2), B, C, patience_s=10.0)
    desk.ask("a")
    desk.ask("c")
    desk.until(9.0)
    desk.ask("b", priority=1)
    desk.until(10.0)
    assert desk.ask("a") in desk.waiting


def test_clients_take_turns() -> None:
    desk = serving(A)
    swarm = [desk.ask("a", client="swarm") for _ in range(5)]
    chat = desk.ask("a", client="chat")
    desk.done(swarm[0])
    desk.done(swarm[1])
    assert list(desk.using) == [chat]


def test_a_swarm_on_one_model_holds_a_chat_on_another_up_for_a_turn_and_its_patience_only() -> None:
    desk = serving(A, B, patience_s=10.0)
    for _ in range(8):
        desk.ask("a", client="swarm")
    chat = desk.ask("b", client="chat")
    while chat in desk.waiting and desk.now < 1000:
        desk.until(desk.now + 6.0)
        for ticket in list(desk.using):
            desk.done(ticket)
        if desk.switches:
            desk.ready()
    assert desk.now <= 18.0 and len(desk.waiting) > 3


def test_a_swarms_batch_is_cut_for_another_client_whose_patience_ran_out() -> None:
    desk = serving(A, B, patience_s=10.0)
    busy = desk.ask("a")
    for _ in range(6):
        desk.ask("b", client="swarm")
    desk.ask("a", client="chat")
    desk.until(15.0)
    desk.done(busy)
    while desk.loads() != ["b", "a"]:
        if desk.using:
            desk.until(desk.now + 6.0)
            desk.done(next(iter(desk.using)))
        else:
            desk.ready()
    assert len(desk.waiting) >= 4 and desk.now < 40.0


def test_a_ticket_is_not_overtaken_for_ever_by_ever_new_clients() -> None:
    desk = serving(A)
    busy = desk.ask("a", client="x")
    desk.ask("a", client="x")
    patient = desk.ask("a", client="x")
    for number in range(20):
        desk.ask("a", client=str(number))
        desk.done(busy)
        busy = next(iter(desk.using))
        if busy == patient:
            break
    assert busy == patient and number < 10


def test_slots_bound_what_runs_and_the_limit_what_waits() -> None:
    desk = Desk(profile("a", 2), max_waiting=10)
    for _ in range(13):
        desk.ask("a")
    assert len(desk.refused) == 3 and {refusal.reason for refusal in desk.refused.values()} == {"queue_full"}
    desk.ready()
    assert len(desk.using) == 2 and len(desk.waiting) == 8
    desk.ask("a")
    desk.ask("a")
    assert len(desk.waiting) == 10 and len(desk.refused) == 3


def test_a_place_is_kept_for_a_client_that_a_crowd_kept_out() -> None:
    desk = serving(A, max_waiting=4)
    swarm = [desk.ask("a", client="swarm") for _ in range(5)]
    chat = desk.ask("a", client="chat")
    assert desk.refused[chat].reason == "queue_full"
    desk.done(swarm[0])
    assert desk.ask("a", client="swarm") in desk.refused
    assert desk.ask("a", client="chat") in desk.waiting
    desk.done(swarm[1])
    assert desk.ask("a", client="swarm") in desk.waiting


def test_a_place_is_not_kept_for_ever() -> None:
    desk = serving(A, max_waiting=4)
    swarm = [desk.ask("a", client="swarm") for _ in range(5)]
    refused = desk.ask("a", client="chat")
    desk.until(desk.refused[refused].retry_after_s + 5.0)
    desk.done(swarm[0])
    assert desk.ask("a", client="swarm") in desk.waiting


def test_a_model_is_not_loaded_to_serve_nobody() -> None:
    desk = serving(A, B, patience_s=0.0)
    for model in "aabb":
        desk.ask(model, client="x")
    desk.done(1)
    desk.done(2)
    desk.ask("a", client="y")
    desk.ready()
    assert list(desk.using) == [3]


def test_a_full_queue_does_not_concern_a_loaded_model_with_a_free_slot() -> None:
    desk = Desk(
        profile("a", memory_bytes=5), profile("b", memory_bytes=5), budget=10, states={"b": "ready"}, max_waiting=1
    )
    desk.ask("a")
    b = desk.ask("b")
    assert b in desk.using


def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    desk = Desk(A, max_waiting=1)
    first = desk.ask("a")
    desk.leave(first)
    second = desk.ask("a")
    assert second in desk.waiting and not desk.refused


def test_a_client_that_leaves_just_when_it_is_granted_gives_its_slot_back() -> None:
    desk = serving(A)
    first = desk.ask("a")
    second = desk.ask("a")
    desk.leave(first)
    assert list(desk.using) == [second]


def test_nobody_waits_longer_than_the_limit() -> None:
    desk = serving(A, max_wait_s=120.0)
    desk.ask("a")
    waits = desk.ask("a")
    desk.until(119.9)
    assert waits in desk.waiting
    desk.until(120.0)
    assert desk.refused[waits].reason == "wait_limit"


def test_a_model_whose_last_waiter_left_is_never_loaded() -> None:
    desk = serving(A, B)
    busy = desk.ask("a")
    desk.leave(desk.ask("b"))
    desk.done(busy)
    desk.until(500.0)
    assert not desk.switches


def test_a_load_whose_last_waiter_left_is_finished_and_kept_for_its_idle_time() -> None:
    desk = Desk(profile("a", ttl_s=60.0))
    desk.leave(desk.ask("a"))
    desk.now = 5.0
    desk.ready()
    desk.until(64.9)
    assert not desk.unloads
    desk.until(65.0)
    assert desk.unloads == ["a"]


def test_the_idle_time_counts_from_the_last_answer_and_never_ends_in_one() -> None:
    desk = serving(profile("a", ttl_s=2.0))
    desk.until(1.9)
    answer = desk.ask("a")
    desk.until(50.0)
    desk.done(answer)
    desk.until(51.9)
    assert not desk.unloads
    desk.until(52.0)
    assert desk.unloads == ["a"]


@pytest.mark.parametrize(("keep_alive_s", "unloaded_at"), [(0.0, 1.0), (5.0, 6.0), (None, 3.0), (math.inf, None)])
def test_a_request_may_say_how_long_its_model_is_kept(keep_alive_s: float | None, unloaded_at: float | None) -> None:
    desk = serving(profile("a", ttl_s=2.0))
    answer = desk.ask("a")
    desk.now = 1.0
    desk.done(answer, keep_alive_s)
    assert desk.scheduler.next_deadline() == (unloaded_at if unloaded_at != 1.0 else None)
    desk.until(1000.0)
    assert desk.unloads == ([] if unloaded_at is None else ["a"])


def test_without_an_idle_time_a_model_stays() -> None:
    desk = serving(A)
    desk.done(desk.ask("a"))
    assert desk.scheduler.next_deadline() is None


def test_a_request_during_an_idle_stop_gets_a_fresh_process() -> None:
    desk = serving(profile("a", ttl_s=2.0))
    desk.until(2.0)
    ticket = desk.ask("a")
    assert ticket in desk.waiting and not desk.switches
    desk.note(desk.scheduler.process_ended("a", 3.0))
    assert desk.loads() == ["a"]
    desk.ready()
    assert desk.served == [ticket]


def test_an_unload_during_a_load_leaves_no_stale_result_for_the_next_request() -> None:
    desk = Desk(A)
    first = desk.ask("a")
    old = desk.switches[0]
    desk.note(desk.scheduler.unload("a", 1.0))
    assert desk.refused[first].reason == "unloaded" and desk.unloads == ["a"]
    second = desk.ask("a")
    desk.note(desk.scheduler.load_failed(old.id, "a", 1.5, Failure(kind="cancelled", message="stopped")))
    assert second in desk.waiting
    desk.note(desk.scheduler.process_ended("a", 2.0))
    assert desk.loads() == ["a", "a"]
    desk.note(desk.scheduler.loaded(old.id, "a", 2.5))
    assert second in desk.waiting
    desk.ready()
    assert desk.served == [second]


def test_an_unload_lets_running_answers_end_first() -> None:
    desk = serving(profile("a", 2))
    answer = desk.ask("a")
    desk.note(desk.scheduler.unload("a", 1.0))
    later = desk.ask("a")
    assert not desk.unloads and later in desk.waiting
    desk.done(answer)
    assert desk.unloads == ["a"]
    desk.note(desk.scheduler.process_ended("a", 2.0))
    desk.ready()
    assert desk.served == [answer, later]


def test_a_forced_unload_stops_at_once_and_its_leases_free_nothing_later() -> None:
    desk = serving(A)
    answer = desk.ask("a")
    desk.note(desk.scheduler.unload("a", 1.0, force=True))
    assert desk.unloads == ["a"]
    desk.note(desk.scheduler.process_ended("a", 1.1))
    fresh = desk.ask("a")
    desk.ready()
    desk.done(answer)
    assert list(desk.using) == [fresh]
    assert desk.ask("a") in desk.waiting


def test_unloading_a_queued_model_refuses_its_queue_and_no_other() -> None:
    desk = serving(A, B, C)
    desk.ask("a")
    b, c = desk.ask("b"), desk.ask("c")
    desk.note(desk.scheduler.unload("b", 0.0))
    assert desk.refused[b].reason == "unloaded" and c in desk.waiting and not desk.unloads


def test_a_slow_stop_does_not_concern_other_models() -> None:
    desk = Desk(
        profile("a", 2, memory_bytes=5), profile("b", memory_bytes=5), budget=10, states={"a": "ready", "b": "ready"}
    )
    desk.note(desk.scheduler.unload("b", 0.0))
    ticket = desk.ask("a")
    assert ticket in desk.using


FAILURE = Failure(kind="out_of_memory", message="does not fit", retry_after_s=30.0)


def test_a_failed_load_is_told_to_all_who_wait_for_it() -> None:
    desk = Desk(A, B)
    desk.ask("a")
    desk.ask("a")
    b = desk.ask("b")
    desk.fails(FAILURE)
    assert {refusal.failure for refusal in desk.refused.values()} == {FAILURE}
    assert desk.loads() == ["a", "b"] and b in desk.waiting


def test_a_model_that_fails_fast_does_not_cost_another_its_place() -> None:
    desk = Desk(A, B)
    desk.ask("b")
    desk.fails(FAILURE)
    desk.ask("a")
    desk.ready()
    refused = desk.ask("b")
    assert desk.refused[refused].reason == "load_failed" and desk.refused[refused].retry_after_s == 30.0
    assert desk.loads() == ["b", "a"]
    desk.until(30.0)
    desk.done(next(iter(desk.using)))
    desk.ask("b")
    assert desk.loads() == ["b", "a", "b"]


def test_a_failed_load_is_tried_again_when_asked_for_again() -> None:
    desk = Desk(A)
    desk.ask("a")
    desk.fails(Failure(kind="exited", message="went away"))
    second = desk.ask("a")
    desk.ready()
    assert desk.served == [second]


def test_the_previous_model_comes_back_after_a_failed_switch() -> None:
    desk = serving(A, B)
    desk.ask("b")
    desk.fails(FAILURE)
    assert desk.loads() == ["b", "a"]
    desk.fails(FAILURE)
    assert desk.loads() == ["b", "a"], "once is enough"


def test_a_crash_while_idle_is_repaired_by_the_next_request() -> None:
    desk = serving(A)
    desk.note(desk.scheduler.process_ended("a", 1.0))
    ticket = desk.ask("a")
    desk.ready()
    assert desk.served == [ticket]


def test_a_crash_restarts_the_model_for_those_who_wait() -> None:
    desk = serving(A)
    crashed, waits = desk.ask("a"), desk.ask("a")
    desk.note(desk.scheduler.process_ended("a", 1.0))
    desk.done(crashed)
    desk.ready()
    assert list(desk.using) == [waits]


def test_a_late_word_of_an_old_process_does_not_end_a_load() -> None:
    desk = serving(A)
    desk.note(desk.scheduler.process_ended("a", 1.0))
    ticket = desk.ask("a")
    desk.note(desk.scheduler.process_ended("a", 1.1))
    desk.ready()
    assert desk.served == [ticket]


def test_somebody_elses_load_is_joined() -> None:
    desk = Desk(A, states={"a": "starting"})
    ticket = desk.ask("a")
    assert [(order.model, order.evict) for order in desk.switches] == [("a", ())]
    desk.ready()
    assert desk.served == [ticket]


def test_a_snapshot_makes_good_what_was_missed() -> None:
    desk = serving(A, B)
    desk.note(desk.scheduler.apply_snapshot(status(A, B, states={"b": "ready"}), 0.0))
    desk.ask("b")
    assert desk.served == [1]
    desk.done(1)
    desk.ask("a")
    assert desk.switches[0].evict == ("b",)


def test_a_snapshot_from_before_an_order_does_not_undo_it() -> None:
    desk = Desk(A)
    desk.ask("a")
    desk.note(desk.scheduler.apply_snapshot(status(A, states={"a": "stopped"}), 1.0))
    desk.ready()
    assert desk.served == [1] and desk.loads() == ["a"]


def test_a_profile_that_was_removed_is_unknown() -> None:
    desk = serving(A, B)
    desk.ask("a")
    waits = desk.ask("b")
    desk.note(desk.scheduler.apply_snapshot(status(A, states={"a": "ready"}), 1.0))
    assert desk.refused[waits].reason == "unknown_model"
    assert desk.refused[desk.ask("b")].reason == "unknown_model"


def test_a_reload_that_changes_nothing_touches_nothing() -> None:
    desk = serving(A, B)
    answer, waits = desk.ask("a"), desk.ask("b")
    assert desk.note(desk.scheduler.apply_snapshot(status(A, B, states={"a": "ready"}), 1.0)) == []
    assert answer in desk.using and waits in desk.waiting


def test_a_lost_host_refuses_those_who_wait_but_not_what_is_ready() -> None:
    desk = serving(profile("a", 2), B)
    desk.ask("a")
    waits = desk.ask("b")
    desk.note(desk.scheduler.supervisor_lost(1.0))
    assert desk.refused[waits].reason == "host_gone"
    assert desk.refused[desk.ask("b")].reason == "host_gone"
    assert desk.ask("a") in desk.using


def test_nobody_is_held_back_for_those_whom_a_lost_host_refused() -> None:
    desk = serving(profile("a", 2), B, patience_s=1.0, max_waiting=1)
    desk.ask("a")
    desk.ask("b")
    desk.until(2.0)
    desk.note(desk.scheduler.supervisor_lost(2.0))
    assert desk.ask("a") in desk.using


def test_nothing_is_promised_before_the_host_is_known() -> None:
    scheduler = Scheduler(RULES)
    [decision] = scheduler.request(Ticket(id=1, model="a", at=0.0), 0.0)
    assert isinstance(decision, Refuse) and decision.reason == "host_gone"


def test_retry_after_comes_from_what_loads_took() -> None:
    desk = Desk(A, max_waiting=1)
    ticket = desk.ask("a")
    desk.until(40.0)
    desk.ready()
    desk.done(ticket)
    desk.note(desk.scheduler.process_ended("a", 40.0))
    desk.ask("a")
    assert desk.refused[desk.ask("a")].retry_after_s == pytest.approx(40.0)
    desk.until(70.0)
    assert desk.refused[desk.ask("a")].retry_after_s == pytest.approx(10.0)


def test_retry_after_comes_from_how_fast_the_queue_moves() -> None:
    desk = serving(A, max_waiting=1)
    for _ in range(30):
        ticket = desk.ask("a")
        desk.until(desk.now + 8.0)
        desk.done(ticket)
    desk.ask("a")
    desk.ask("a")
    assert desk.refused[desk.ask("a")].retry_after_s == pytest.approx(8.0, rel=0.05)


def test_who_has_waited_in_vain_is_told_to_come_back_when_it_would_be_served() -> None:
    desk = serving(A, max_wait_s=50.0)
    for _ in range(30):
        ticket = desk.ask("a")
        desk.until(desk.now + 8.0)
        desk.done(ticket)
    desk.ask("a")
    waits = desk.ask("a")
    desk.until(desk.now + 50.0)
    assert desk.refused[waits].reason == "wait_limit"
    assert desk.refused[waits].retry_after_s == pytest.approx(8.0, rel=0.05)


def test_expectations_grow_with_what_is_ahead() -> None:
    desk = serving(profile("a", load_s=4.0), profile("b", load_s=20.0))
    assert desk.scheduler.estimate_s("a", 0.0) == 0.0
    assert desk.scheduler.estimate_s("b", 0.0) == 20.0
    desk.ask("a")
    assert desk.scheduler.estimate_s("a", 0.0) > 0.0
    assert desk.scheduler.estimate_s("b", 0.0) > 20.0


def test_those_in_line_are_told_their_own_expectation() -> None:
    desk = Desk(profile("a", load_s=4.0))
    first, second = desk.ask("a"), desk.ask("a")
    assert desk.scheduler.estimate_s("a", 1.0, first) == 3.0
    assert desk.scheduler.estimate_s("a", 1.0, second) > 3.0


def test_everybody_can_be_told_their_position() -> None:
    desk = serving(A, B)
    running, first, second = desk.ask("a"), desk.ask("b"), desk.ask("a")
    assert [desk.scheduler.position(ticket) for ticket in (running, first, second)] == [None, 1, 2]
    view = desk.scheduler.view()
    assert [ticket.id for ticket in view.waiting] == [first, second]
    assert [(model.model, model.phase, model.running, model.waiting) for model in view.models] == [
        ("a", "ready", 1, 1), ("b", "cold", 0, 1)]  # fmt: skip


def test_a_ticket_number_in_use_is_a_mistake() -> None:
    desk = serving(A)
    desk.ask("a")
    with pytest.raises(ValueError, match="ticket 1"):
        desk.scheduler.request(Ticket(id=1, model="a", at=0.0), 0.0)


# Random histories, on a host with loads, stops and answers that take their time.


class Job(msgspec.Struct, frozen=True):
    """A client: when it comes, what for, how long its answer takes, and when it loses interest (if ever)."""

    at: float
    model: str
    takes: float
    client: str
    leaves_after: float | None = None


LOAD_S, STOP_S = 2.0, 1.0


class Simulation(Desk):
    """Plays jobs against a scheduler: its orders take time on the host, and what must not happen there is noticed."""

    def __init__(
        self, *profiles: ProfileInfo, budget: int | None = None, failing: frozenset[int] = frozenset(), **rules: float
    ) -> None:
        self._happens: list[tuple[float, int, str, object]] = []
        self._order = itertools.count()
        self._failing = failing
        self._budget = budget
        self._size = {entry.name: entry.memory_bytes for entry in profiles}
        self._takes: dict[int, float] = {}
        self._client: dict[int, str] = {}
        self.first_in_turn: set[int] = set()
        self._up: set[str] = set()  # what takes room on the host
        self.started: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        super().__init__(*profiles, budget=budget, **rules)

    def soon(self, seconds: float, what: str, about: object) -> None:
        heapq.heappush(self._happens, (self.now + seconds, next(self._order), what, about))

    def note(self, decisions: list[Decision]) -> list[Decision]:
        super().note(decisions)
        for decision in decisions:
            if isinstance(decision, Grant):
                assert decision.model in self._up, "granted a model that is not there"
                self.started[decision.ticket] = self.now
                self.soon(self._takes[decision.ticket], "end", decision.ticket)
            elif isinstance(decision, StartSwitch):
                for victim in decision.evict:
                    self.soon(STOP_S, "gone", victim)
                stop_s = STOP_S if set(decision.evict) & self._up else 0.0
                self.soon(stop_s, "start", decision.model)
                self.soon(stop_s + LOAD_S, "switched", decision)
            elif isinstance(decision, Unload):
                assert decision.model not in self.using.values()
                self.soon(STOP_S, "gone", decision.model)
            else:
                self.ended[decision.ticket] = self.now
        return decisions

    def run(self, jobs: list[Job]) -> None:
        for job in jobs:
            heapq.heappush(self._happens, (job.at, next(self._order), "job", job))
        for _ in range(2000):
            due = self.scheduler.next_deadline()
            if self._happens and (due is None or self._happens[0][0] <= due):
                self.now, _, what, about = heapq.heappop(self._happens)
                getattr(self, f"_{what}")(about)
            elif due is not None:
                assert due >= self.now - 1e-9, "a deadline in the past was missed"
                self.until(due)
            else:
                return
        raise AssertionError("it never comes to rest")

    def _job(self, job: Job) -> None:
        number = next(self._ids)
        self._takes[number] = job.takes
        self._client[number] = job.client
        if job.client not in {self._client[other] for other in self.waiting}:
            self.first_in_turn.add(number)
        self.waiting.add(number)
        if job.leaves_after is not None:
            self.soon(job.leaves_after, "left", number)
        self.note(self.scheduler.request(Ticket(id=number, model=job.model, at=self.now, client=job.client), self.now))

    def _left(self, number: int) -> None:
        if number not in self.ended:
            self.ended[number] = self.now
            self.leave(number)

    def _end(self, number: int) -> None:
        if number not in self.ended:
            self.ended[number] = self.now
            self.done(number)

    def _gone(self, model: str) -> None:
        assert model not in self.using.values(), "stopped while serving"
        self._up.discard(model)
        self.note(self.scheduler.process_ended(model, self.now))

    def _start(self, model: str) -> None:
        self._up.add(model)
        if self._budget is None:
            assert len(self._up) == 1, f"{self._up} at once"
        else:
            assert sum(self._size[name] for name in self._up) <= self._budget, f"{self._up} do not fit"

    def _switched(self, order: StartSwitch) -> None:
        if order.id in self._failing:
            self._up.discard(order.model)
            self.note(self.scheduler.load_failed(order.id, order.model, self.now))
        else:
            self.note(self.scheduler.loaded(order.id, order.model, self.now))


MODELS = "abc"
TIMES = st.integers(0, 12).map(lambda half: half / 2)
JOBS = st.lists(
    st.builds(
        Job,
        at=st.integers(0, 40).map(lambda half: half / 2),
        model=st.sampled_from(MODELS),
        takes=TIMES,
        client=st.sampled_from("xyz"),
        leaves_after=st.none() | TIMES,
    ),
    max_size=14,
).map(lambda jobs: sorted(jobs, key=lambda job: job.at))
STAYING = JOBS.map(lambda jobs: [msgspec.structs.replace(job, leaves_after=None) for job in jobs])
PARALLEL = st.integers(1, 3)
PATIENCE = st.sampled_from([0.0, 1.0, 4.0, 10.0])


@given(
    JOBS,
    PARALLEL,
    PATIENCE,
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([None, 2.0]),
    st.frozensets(st.integers(1, 6), max_size=3),
)
@settings(deadline=None, max_examples=500)
def test_no_ticket_is_lost_and_all_comes_to_rest(
    jobs: list[Job], parallel: int, patience_s: float, residency_s: float, ttl_s: float | None, failing: frozenset[int]
) -> None:
    profiles = [profile(name, parallel, ttl_s=ttl_s) for name in MODELS]
    host = Simulation(
        *profiles, failing=failing, patience_s=patience_s, min_residency_s=residency_s, max_waiting=8, max_wait_s=25.0
    )
    host.run(jobs)
    assert set(host.ended) == set(range(1, len(jobs) + 1))
    assert not host.waiting and not host.using
    assert all(model.running == model.waiting == 0 for model in host.scheduler.view().models)


@given(JOBS, PARALLEL, PATIENCE, st.lists(st.integers(1, 10), min_size=3, max_size=3), st.sampled_from([None, 2.0]))
@settings(deadline=None, max_examples=500)
def test_models_share_a_budget_without_ever_exceeding_it(
    jobs: list[Job], parallel: int, patience_s: float, sizes: list[int], ttl_s: float | None
) -> None:
    profiles = [
        profile(name, parallel, memory_bytes=size, ttl_s=ttl_s) for name, size in zip(MODELS, sizes, strict=True)
    ]
    host = Simulation(*profiles, budget=10, patience_s=patience_s, max_waiting=20, max_wait_s=1000.0)
    host.run(jobs)
    assert set(host.ended) == set(range(1, len(jobs) + 1)) and not host.refused


@given(STAYING, PARALLEL, PATIENCE, st.sampled_from(["one", "each", "some"]))
@settings(deadline=None, max_examples=500)
def test_nobody_waits_longer_than_patience_and_the_loads_and_answers_before_it(
    jobs: list[Job], parallel: int, patience_s: float, clients: str
) -> None:
    jobs = with_clients(jobs, clients)
    host = Simulation(
        *(profile(name, parallel) for name in MODELS), patience_s=patience_s, max_waiting=20, max_wait_s=1e9
    )
    host.run(jobs)
    assert not host.refused
    for number, job in enumerate(jobs, 1):
        if number in host.first_in_turn or clients != "some":
            # Its patience, once; every model comes before it once at most, its own included, and every answer.
            bound = patience_s + len(MODELS) * (STOP_S + LOAD_S) + sum(other.takes for other in jobs) - job.takes
            assert host.started[number] - job.at <= bound


def with_clients(jobs: list[Job], clients: str) -> list[Job]:
    """The jobs as those of one client, of a client each, or as they are."""
    names = {"one": lambda _: "x", "each": str, "some": lambda number: jobs[number].client}[clients]
    return [msgspec.structs.replace(job, client=names(number)) for number, job in enumerate(jobs)]


def first_come_first_served(jobs: list[Job], parallel: int) -> int:
    """How often a host that serves strictly in the order of arrival loads a model."""
    now, loaded, loads = 0.0, None, 0
    ends: list[float] = []
    for job in jobs:
        now = max(now, job.at)
        if loaded != job.model:
            now = max([now, *ends]) + (STOP_S if loaded else 0.0) + LOAD_S
            loaded, loads, ends = job.model, loads + 1, []
        while len(ends) >= parallel:
            now = max(now, heapq.heappop(ends))
        heapq.heappush(ends, now + job.takes)
    return loads


@given(STAYING, PARALLEL, PATIENCE, st.sampled_from(["one", "each"]))
@settings(deadline=None, max_examples=600)
def test_never_switches_more_often_than_first_come_first_served(
    jobs: list[Job], parallel: int, patience_s: float, clients: str
) -> None:
    jobs = with_clients(jobs, clients)
    host = Simulation(
        *(profile(name, parallel) for name in MODELS), patience_s=patience_s, max_waiting=20, max_wait_s=1e9
    )
    host.run(jobs)
    assert len(host.switches) <= first_come_first_served(jobs, parallel)


@pytest.mark.parametrize("early", [True, False])
def test_answers_of_an_earlier_life_are_expected_to_come_again(early: bool) -> None:
    scheduler = Scheduler(RULES)
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
    assert scheduler.is_measured("a", 2)


def test_what_was_seen_in_this_life_counts_more() -> None:
    desk = Desk(profile("a"), states={"a": "ready"})
    desk.scheduler.request(Ticket(id=101, model="a", at=0.0), 0.0)
    desk.scheduler.release(101, 1.0)
    desk.scheduler.seed_service_times({"a": [60.0]})
    desk.scheduler.request(Ticket(id=102, model="a", at=1.0), 1.0)
    desk.scheduler.request(Ticket(id=103, model="a", at=1.0), 1.0)
    assert desk.scheduler.estimate_s("a", 1.0, 103) == pytest.approx(1.0)
