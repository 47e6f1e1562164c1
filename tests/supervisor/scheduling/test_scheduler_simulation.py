"""Thousands of random histories on a simulated host: no ticket is lost, none waits too long, memory is never exceeded."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from fakes.scheduler_host import SchedulerHost, profile
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.supervisor.contract import ProfileInfo
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.types import Decision, Grant, PrepareNext, StartSwitch, Unload


class Job(msgspec.Struct, frozen=True):
    """A client: when it comes, what for, how long its answer takes, and when it loses interest (if ever)."""

    at: float
    model: str
    takes: float
    client: str
    leaves_after: float | None = None


LOAD_S, STOP_S = 2.0, 1.0


class Simulation(SchedulerHost):
    """Plays jobs against a scheduler: its orders take time on the host, and what must not happen there is noticed."""

    def __init__(
        self, *profiles: ProfileInfo, budget: int | None = None, failing: frozenset[int] = frozenset(),
        limits: Mapping[str, Any] | None = None, may_run: Callable[[set[str]], bool] | None = None,
        overlaps: bool = False, **rules: float,
    ) -> None:  # fmt: skip
        self._overlaps = overlaps
        self._happens: list[tuple[float, int, str, object]] = []
        self._order = itertools.count()
        self._failing = failing
        self._budget = budget
        self._size = {entry.name: entry.memory_bytes for entry in profiles}
        self._takes: dict[int, float] = {}
        self._client: dict[int, str] = {}
        self.first_in_turn: set[int] = set()
        self._up: set[str] = set()  # what takes room on the host
        self._ordered: set[str] = set()  # what is being switched to
        self.started: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self._may_run = may_run
        super().__init__(*profiles, budget=budget, limits=limits, **rules)

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
                self._ordered.add(decision.model)
                for victim in decision.evict:
                    self.soon(STOP_S, "gone", victim)
                stop_s = STOP_S if set(decision.evict) & self._up else 0.0
                self.soon(stop_s, "start", decision.model)
                self.soon(stop_s + LOAD_S, "switched", decision)
            elif isinstance(decision, Unload):
                assert decision.model not in self.using.values()
                self.soon(STOP_S, "gone", decision.model)
            elif isinstance(decision, PrepareNext):
                if decision.start and self._overlaps:
                    self.soon(LOAD_S, "overlapped", decision)
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
                self.advance_to(due)
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
            self.cancel(number)

    def _end(self, number: int) -> None:
        if number not in self.ended:
            self.ended[number] = self.now
            self.release(number)

    def _gone(self, model: str) -> None:
        assert model not in self.using.values(), "stopped while serving"
        self._up.discard(model)
        self.note(self.scheduler.process_ended(model, self.now))

    def _start(self, model: str) -> None:
        self._up.add(model)
        if self._may_run is not None:
            assert self._may_run(self._up), f"{self._up} must not run together"
        elif self._budget is None:
            assert len(self._up) == 1, f"{self._up} at once"
        else:
            assert sum(self._size[name] for name in self._up) <= self._budget, f"{self._up} do not fit"

    def _overlapped(self, order: PrepareNext) -> None:
        """A model that was started beside others is ready, unless the order was replaced or a switch has taken over."""
        if order is self.prepared[-1] and order.model is not None and order.model not in self._ordered:
            self._up.add(order.model)
            self.note(self.scheduler.loaded(None, order.model, self.now))

    def _switched(self, order: StartSwitch) -> None:
        self._ordered.discard(order.model)
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


@given(JOBS, PARALLEL, PATIENCE, st.sampled_from([0.0, 3.0]), st.sampled_from([None, 2.0]))
@settings(deadline=None, max_examples=500)
def test_models_that_start_while_others_finish_lose_no_ticket_and_leave_one_model(
    jobs: list[Job], parallel: int, patience_s: float, residency_s: float, ttl_s: float | None
) -> None:
    host = Simulation(
        *(profile(name, parallel, ttl_s=ttl_s) for name in MODELS), patience_s=patience_s,
        min_residency_s=residency_s, max_waiting=20, max_wait_s=1000.0, overlaps=True, may_run=lambda up: True,
    )  # fmt: skip
    host.run(jobs)
    assert set(host.ended) == set(range(1, len(jobs) + 1)) and not host.refused
    assert sum(model.phase != "cold" for model in host.scheduler.view().models) <= 1


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
def test_no_ticket_waits_longer_than_patience_and_the_loads_and_answers_before_it(
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
