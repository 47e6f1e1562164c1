"""A host with a scheduler and a clock, for tests of decisions: it notes them and checks the scheduler's guarantees."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.supervisor.contract import Failure, HostStatus, ModelStatus, ProfileInfo
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import (
    Decision,
    Grant,
    PrepareNext,
    Refuse,
    Revoke,
    SchedulerSettings,
    StartSwitch,
)

SETTINGS = SchedulerSettings()


def status(
    *profiles: ProfileInfo, budget: int | None = None, states: dict[str, str] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> HostStatus:  # fmt: skip
    """`limits` are further fields of the status; with any the host is not exclusive, unless they say so."""
    models = tuple(ModelStatus(model=name, state=state, since=0.0) for name, state in (states or {}).items())  # type: ignore[arg-type]
    exclusive = budget is None and not limits
    host = HostStatus(profiles=profiles, models=models, exclusive=exclusive, budget_bytes=budget)
    return msgspec.structs.replace(host, **(limits or {}))


def profile(name: str, parallel: int = 1, **more: object) -> ProfileInfo:
    return ProfileInfo(name=name, parallel=parallel, **more)  # type: ignore[arg-type]  # passes the other fields on


class SchedulerHost:
    """A scheduler with a clock, which notes what it decided and sees to it that it keeps its promises."""

    def __init__(
        self, *profiles: ProfileInfo, budget: int | None = None, states: dict[str, str] | None = None,
        limits: Mapping[str, Any] | None = None, **rules: float,
    ) -> None:  # fmt: skip
        self.now = 0.0
        self.profiles = profiles
        self.scheduler = Scheduler(msgspec.structs.replace(SETTINGS, **rules))
        self.served: list[int] = []
        self.refused: dict[int, Refuse] = {}
        self.switches: list[StartSwitch] = []
        self.unloads: list[str] = []
        self.revoked: list[int] = []
        self.prepared: list[PrepareNext] = []
        self.using: dict[int, str] = {}
        self.waiting: set[int] = set()
        self._ids = itertools.count(1)
        self.note(self.scheduler.apply_snapshot(status(*profiles, budget=budget, states=states, limits=limits), 0.0))

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
            elif isinstance(decision, Revoke):
                assert decision.ticket in self.using
                self.revoked.append(decision.ticket)
            elif isinstance(decision, PrepareNext):
                assert decision.model not in self.using.values(), "prepared what is loaded"
                self.prepared.append(decision)
            else:
                self.unloads.append(decision.model)
        return decisions

    def request(
        self, model: str, client: str = "", priority: int = 0, *, background: bool = False, waited_s: float = 0.0
    ) -> int:
        """A new request, which has waited elsewhere for some time."""
        number, at = next(self._ids), self.now - waited_s
        self.waiting.add(number)
        ticket = Ticket(id=number, model=model, at=at, client=client, priority=priority, background=background)
        self.note(self.scheduler.request(ticket, self.now))
        return number

    def release(self, ticket: int, keep_alive_s: float | None = None) -> None:
        self.using.pop(ticket)
        self.note(self.scheduler.release(ticket, self.now, keep_alive_s))

    def cancel(self, ticket: int) -> None:
        self.waiting.discard(ticket)
        self.using.pop(ticket, None)
        self.note(self.scheduler.cancel(ticket, self.now))

    def finish_switch(self, parallel: int = 0) -> None:
        """The switch that was ordered last is done."""
        order = self.switches[-1]
        self.note(self.scheduler.loaded(order.id, order.model, self.now, parallel))

    def fail_switch(self, failure: Failure | None = None) -> None:
        order = self.switches[-1]
        self.note(self.scheduler.load_failed(order.id, order.model, self.now, failure))

    def advance_to(self, now: float) -> None:
        """Time passes; whatever is due on the way happens."""
        while (due := self.scheduler.next_deadline()) is not None and due <= now:
            self.now = max(self.now, due)
            self.note(self.scheduler.tick(self.now))
            assert self.scheduler.next_deadline() != due, "a tick that was due must have moved on"
        self.now = now

    def loads(self) -> list[str]:
        return [order.model for order in self.switches]


def loaded_host(
    *profiles: ProfileInfo, budget: int | None = None, limits: Mapping[str, Any] | None = None, **rules: float
) -> SchedulerHost:
    """A host whose first model is ready."""
    return SchedulerHost(*profiles, budget=budget, states={profiles[0].name: "ready"}, limits=limits, **rules)


A, B, C = profile("a"), profile("b"), profile("c")
