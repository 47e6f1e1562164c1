"""Decides, for one host, who may use which model when, and what must be loaded and stopped for that.

Plain decisions: no task, no clock, no socket. Every method takes the time and returns what is to be done about it.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from hostler.gateway.switching.eviction import Resident, Room, Use, evict
from hostler.gateway.switching.waiting import Line, Places, Rank, Ticket, Turns, Waiter
from hostler.supervisor.contract import Failure, HostStatus, ModelStatus, ProfileInfo

Phase = Literal["cold", "loading", "ready", "stopping"]

Cause = Literal["queue_full", "wait_limit", "load_failed", "does_not_fit", "unloaded", "unknown_model", "host_gone"]

# What a load and an answer are taken to last before any was seen, in seconds.
_LOAD_S, _SERVICE_S = 10.0, 5.0


class SchedulerRules(msgspec.Struct, frozen=True, kw_only=True):
    """How long others may be overtaken, how long a model stays at least, how many may wait and how long."""

    patience_s: float = 10.0
    min_residency_s: float = 0.0
    max_waiting: int = 10
    max_wait_s: float = 120.0


class Grant(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket may use the model now, until `release`."""

    ticket: int
    model: str


class Refuse(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket will not be served here. `failure` is the supervisor's reason, if it gave one."""

    ticket: int
    model: str
    cause: Cause
    retry_after_s: float
    failure: Failure | None = None


class Switch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop the models of `evict` (nobody uses them any more), then load `model`; report `loaded` or `failed`."""

    id: int
    model: str
    evict: tuple[str, ...] = ()


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop `model`; report `gone`, also if the order failed."""

    model: str


Effect = Grant | Refuse | Switch | Unload


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model for dashboards. `draining`: it takes no new requests because another one's turn has come."""

    model: str
    phase: Phase
    running: int
    parallel: int
    waiting: int
    draining: bool
    load_s: float


class SchedulerView(msgspec.Struct, frozen=True, kw_only=True):
    """A host for dashboards; `waiting` is in the order of service."""

    models: tuple[ModelView, ...]
    waiting: tuple[Ticket, ...]
    max_waiting: int


class _Lease(msgspec.Struct, frozen=True):
    model: _Model
    process: int
    since: float


class _Model(msgspec.Struct, eq=False):
    """What the scheduler knows of a model. `process` counts its processes: leases of an old one count no more."""

    name: str
    line: Line
    known: bool = True
    default_parallel: int = 1
    parallel: int = 1
    ttl_s: float | None = None
    pinned: bool = False
    memory_bytes: int = 0
    phase: Phase = "cold"
    process: int = 0
    running: int = 0
    switch: int | None = None
    since: float = 0.0
    used_at: float = 0.0
    idle_until: float | None = None
    # Tickets that rank behind the gate do not get in: somebody waited long enough for the room that this model takes.
    gate: Waiter | None = None
    # How many of those who waited when the model became ready are still in line: they are served together.
    batch: int = 0
    leaving: bool = False
    load_s: float | None = None
    service_s: float | None = None
    failure: Failure | None = None
    failed_until: float = -math.inf

    def learn_load(self, seconds: float) -> None:
        self.load_s = seconds if self.load_s is None else 0.5 * self.load_s + 0.5 * seconds

    def learn_service(self, seconds: float) -> None:
        self.service_s = seconds if self.service_s is None else 0.8 * self.service_s + 0.2 * seconds


class _Order(msgspec.Struct, eq=False):
    """A switch that was ordered and has not reported yet."""

    model: _Model
    victims: list[_Model]


class _Plan(msgspec.Struct, eq=False):
    """A model that may come next, who waits for it, and what has to make room."""

    model: _Model
    head: Waiter
    victims: list[_Model]
    due: float


class Scheduler:
    """Grants, queues and switches for one host.

    Promises: a ticket gets exactly one `Grant` or `Refuse`, unless it leaves first; no `Switch` evicts a model in use;
    switches that need the same room never overlap; a switch's late result never reaches a ticket that came after it was
    given up. A ticket is overtaken by later ones for a loaded model for `patience_s` at most, and then by those that
    were in line when the other model became ready.

    Nothing is known of the host before the first `host()`; until then, and after `lost()`, only models that are
    ready are granted.
    """

    def __init__(self, rules: SchedulerRules) -> None:
        self._rules = rules
        self._room = Room()
        self._connected = False
        self._models: dict[str, _Model] = {}
        self._waiting: dict[int, _Model] = {}
        self._leases: dict[int, _Lease] = {}
        self._orders: dict[int, _Order] = {}
        self._switches = 0
        self._turns = Turns()
        self._places = Places(rules.max_waiting)
        self._plan_due = math.inf

    # Tickets

    def request(self, ticket: Ticket, now: float) -> list[Effect]:
        """A request needs `ticket.model`: granted at once, refused at once, or in line."""
        if ticket.id in self._leases or ticket.id in self._waiting:
            raise ValueError(f"ticket {ticket.id} is in use")
        model = self._models.get(ticket.model)
        if model is None or not model.known:
            return [self._refuse(ticket, "unknown_model" if self._connected else "host_gone", now)]
        if model.phase == "ready":
            # The hot path: nothing else is looked at when there is a free slot and nobody to be polite to.
            if model.running < model.parallel and model.gate is None and not model.line and not model.leaving:
                return [self._grant(ticket, model, now)]
        elif not self._connected:
            return [self._refuse(ticket, "host_gone", now)]
        elif now < model.failed_until:
            return [self._refuse(ticket, "load_failed", now)]
        if not self._places.free(ticket.client, self._turns, len(self._waiting), now):
            refusal = self._refuse(ticket, "queue_full", now)
            self._places.keep(ticket.client, self._turns, now + refusal.retry_after_s)
            return [refusal]
        self._places.take(ticket.client)
        model.line.add(self._turns.join(ticket))
        self._waiting[ticket.id] = model
        return self._settle(now)

    def release(self, ticket_id: int, now: float, keep_alive_s: float | None = None) -> list[Effect]:
        """The holder of a lease is done. `keep_alive_s` replaces the model's idle time (0: stop it, inf: keep it)."""
        lease = self._leases.pop(ticket_id, None)
        if lease is None:
            return []
        model = lease.model
        model.learn_service(now - lease.since)
        if lease.process != model.process:
            return []
        model.running -= 1
        model.used_at = now
        if not model.running:
            model.idle_until = self._idle_until(model, now, keep_alive_s)
        if not self._waiting and not model.leaving and (model.idle_until is None or model.idle_until > now):
            return []
        return self._settle(now)

    def leave(self, ticket_id: int, now: float) -> list[Effect]:
        """The client left, wherever its ticket was: in line, granted a moment ago, or gone already."""
        if ticket_id in self._waiting:
            self._turns.leave(self._take(ticket_id))
            return self._settle(now)
        return self.release(ticket_id, now)

    # What the host did

    def loaded(self, switch_id: int | None, model: str, now: float, parallel: int = 0) -> list[Effect]:
        """`model` is ready. `switch_id` is `None` when the host did it on its own; `parallel` 0: as the profile says."""
        order = self._end(switch_id)
        state = self._models.get(model)
        if state is None or (switch_id is None and state.phase == "stopping") or state.switch != switch_id:
            return self._settle(now) if order else []
        if state.phase == "ready":
            return []
        if order is not None:
            state.learn_load(now - state.since)
        self._make_ready(state, now, parallel)
        return self._settle(now)

    def failed(self, switch_id: int, model: str, now: float, failure: Failure | None = None) -> list[Effect]:
        """The switch came to nothing: those who wait for its model are refused, and the model before it comes back.

        What it evicted is taken to be stopped; ordering it again is harmless if that is wrong.
        """
        order = self._end(switch_id)
        state = self._models.get(model)
        if state is None or state.switch != switch_id:
            return self._settle(now) if order else []
        self._make_cold(state)
        if failure is not None and failure.retry_after_s:
            state.failure, state.failed_until = failure, now + failure.retry_after_s
        effects: list[Effect] = self._refuse_line(state, "load_failed", now, failure)
        effects += self._settle(now)
        quiet = not self._orders and all(other.phase == "cold" or other.pinned for other in self._models.values())
        if order is not None and order.victims and quiet and self._connected:
            previous = max(order.victims, key=lambda victim: victim.used_at)
            if previous.known and now >= previous.failed_until:
                effects.append(self._order(previous, [], now))
        return effects

    def gone(self, model: str, now: float) -> list[Effect]:
        """The model's process ended: a crash, or an unload that was ordered. Leases on it end by `release` as always."""
        state = self._models.get(model)
        if state is None or state.phase == "cold" or state.switch is not None:
            return []  # a load under way reports by `loaded` or `failed`
        self._make_cold(state)
        return self._settle(now)

    def unload(self, model: str, now: float, *, force: bool = False) -> list[Effect]:
        """Somebody asked for `model` to be stopped: its queue is refused; it is stopped when the running answers have
        ended, or at once with `force`. Later requests wait for a fresh process."""
        state = self._models.get(model)
        if state is None:
            return []
        effects: list[Effect] = self._refuse_line(state, "unloaded", now, None)
        if state.phase == "loading":
            state.switch = None  # its result will find nobody
            effects.append(self._stop(state))
        elif state.phase == "ready":
            state.leaving = True
            if force:
                effects.append(self._stop(state))
        return effects + self._settle(now)

    def host(self, status: HostStatus, now: float) -> list[Effect]:
        """The supervisor's snapshot: profiles and rules as they are, and whatever was missed is made good."""
        self._connected = True
        self._room = Room(exclusive=status.exclusive, budget_bytes=status.budget_bytes)
        profiles = {profile.name: profile for profile in status.profiles}
        statuses = {entry.model: entry for entry in status.models}
        effects: list[Effect] = []
        for profile in profiles.values():
            self._learn(profile)
        for state in list(self._models.values()):
            state.known = state.name in profiles
            if not state.known:
                effects += self._refuse_line(state, "unknown_model", now, None)
            self._reconcile(state, statuses.get(state.name), now)
            if not state.known and state.phase == "cold":
                del self._models[state.name]
        return effects + self._settle(now)

    def lost(self, now: float) -> list[Effect]:
        """The supervisor does not answer: nobody waits for it. Models that were ready may still answer."""
        self._connected = False
        return [
            effect for state in self._models.values() for effect in self._refuse_line(state, "host_gone", now, None)
        ]

    # Time

    def tick(self, now: float) -> list[Effect]:
        """Time has passed. Too early or too often does no harm."""
        effects: list[Effect] = []
        for state in self._models.values():
            while state.line and now >= state.line.oldest_at() + self._rules.max_wait_s:
                waiter = self._take(state.line.oldest().ticket.id)
                self._turns.leave(waiter)
                effects.append(self._refuse(waiter.ticket, "wait_limit", now))
        return effects + self._settle(now)

    def next_deadline(self) -> float | None:
        """When `tick` is due. A grant never makes it earlier, so a timer need not be set again after one."""
        due = self._plan_due
        for state in self._models.values():
            if state.line:
                due = min(due, state.line.oldest_at() + self._rules.max_wait_s)
            elif state.idle_until is not None and state.phase == "ready":
                due = min(due, state.idle_until)
        return None if due == math.inf else due

    # What others are told

    def position(self, ticket_id: int) -> int | None:
        """How many are served before this ticket, plus one; `None` if it does not wait."""
        model = self._waiting.get(ticket_id)
        if model is None:
            return None
        order = [waiter.ticket.id for waiter in self._in_order()]
        return order.index(ticket_id) + 1

    def snapshot(self) -> SchedulerView:
        """Everything, for dashboards."""
        models = tuple(
            ModelView(
                model=state.name, phase=state.phase, running=state.running, parallel=state.parallel,
                waiting=len(state.line), draining=state.gate is not None or state.leaving, load_s=self._load_s(state),
            )
            for state in self._models.values()
        )  # fmt: skip
        waiting = tuple(waiter.ticket for waiter in self._in_order())
        return SchedulerView(models=models, waiting=waiting, max_waiting=self._rules.max_waiting)

    def estimate(self, model: str, now: float) -> float:
        """In how many seconds a request for `model` that comes now would be served, from what was seen so far."""
        state = self._models.get(model)
        if state is None:
            return 0.0
        served = self._service_s(state) / state.parallel
        if state.phase == "ready" and state.gate is None and not state.leaving:
            busy = len(state.line) + (state.running >= state.parallel)
            return busy * served
        ahead = 0.0 if state.phase == "loading" else self._until_room(state)
        load = self._load_s(state)
        if state.phase == "loading":
            load = max(load - (now - state.since), 0.1 * load)
        return ahead + load + len(state.line) * served

    # Inside: tickets

    def _grant(self, ticket: Ticket, model: _Model, now: float) -> Grant:
        model.running += 1
        model.idle_until = None
        self._leases[ticket.id] = _Lease(model, model.process, now)
        return Grant(ticket=ticket.id, model=model.name)

    def _take(self, ticket_id: int) -> Waiter:
        model = self._waiting.pop(ticket_id)
        waiter = model.line.remove(ticket_id)
        model.batch = min(model.batch, len(model.line))
        return waiter

    def _refuse(self, ticket: Ticket, cause: Cause, now: float, failure: Failure | None = None) -> Refuse:
        model = self._models.get(ticket.model)
        retry_after_s = 0.0
        if cause == "load_failed" and model is not None and now < model.failed_until:
            failure, retry_after_s = model.failure, model.failed_until - now
        elif cause == "queue_full":
            retry_after_s = max(1.0, self._until_place(now))
        elif cause == "wait_limit":
            retry_after_s = max(1.0, self.estimate(ticket.model, now))
        return Refuse(
            ticket=ticket.id, model=ticket.model, cause=cause, retry_after_s=retry_after_s, failure=failure
        )  # fmt: skip

    def _refuse_line(self, model: _Model, cause: Cause, now: float, failure: Failure | None) -> list[Effect]:
        effects: list[Effect] = []
        for waiter in model.line.waiters():
            self._turns.leave(self._take(waiter.ticket.id))
            effects.append(self._refuse(waiter.ticket, cause, now, failure))
        return effects

    def _in_order(self) -> list[Waiter]:
        everybody = [waiter for state in self._models.values() for waiter in state.line.waiters()]
        return sorted(everybody, key=lambda waiter: waiter.rank)

    # Inside: models

    def _learn(self, profile: ProfileInfo) -> None:
        state = self._models.get(profile.name)
        if state is None:
            state = self._models[profile.name] = _Model(profile.name, Line())
        state.default_parallel = max(1, profile.parallel)
        state.ttl_s, state.pinned, state.memory_bytes = profile.ttl_s, profile.pinned, profile.memory_bytes
        if state.phase != "ready":
            state.parallel = state.default_parallel
        if state.load_s is None:
            state.load_s = profile.load_s

    def _reconcile(self, state: _Model, status: ModelStatus | None, now: float) -> None:
        seen = "stopped" if status is None else status.state
        if status is not None and status.failure is not None and seen == "failed" and status.failure.retry_after_s:
            state.failure, state.failed_until = status.failure, now + status.failure.retry_after_s
        elif seen in ("starting", "ready"):
            state.failed_until = -math.inf
        if state.switch is not None:
            return  # our own order reports by itself; the snapshot may be older than the order
        if seen == "ready" and state.phase in ("cold", "loading"):
            self._make_ready(state, now, 0)
        elif seen == "starting" and state.phase in ("cold", "ready"):
            self._make_cold(state)
            state.phase, state.since = "loading", now
        elif seen == "stopping" and state.phase != "stopping":
            self._make_cold(state)
            state.phase = "stopping"
        elif seen in ("stopped", "backoff", "failed"):
            self._make_cold(state)

    def _make_ready(self, state: _Model, now: float, parallel: int) -> None:
        state.phase, state.switch, state.since, state.used_at = "ready", None, now, now
        state.parallel = parallel or state.default_parallel
        state.leaving, state.gate = False, None
        state.failure, state.failed_until = None, -math.inf
        state.batch = len(state.line)
        state.idle_until = self._idle_until(state, now, None)

    def _make_cold(self, state: _Model) -> None:
        if state.phase != "cold":
            state.process += 1
        state.phase, state.switch, state.running, state.idle_until = "cold", None, 0, None
        state.leaving, state.gate, state.batch = False, None, 0

    def _stop(self, state: _Model) -> Unload:
        self._make_cold(state)
        state.phase = "stopping"
        return Unload(model=state.name)

    def _order(self, state: _Model, victims: list[_Model], now: float) -> Switch:
        for victim in victims:
            self._make_cold(victim)
            victim.phase = "stopping"
        self._switches += 1
        state.phase, state.switch, state.since = "loading", self._switches, now
        self._orders[self._switches] = _Order(state, victims)
        return Switch(id=self._switches, model=state.name, evict=tuple(victim.name for victim in victims))

    def _end(self, switch_id: int | None) -> _Order | None:
        """The order reported: what it stopped is stopped."""
        order = self._orders.pop(switch_id, None) if switch_id is not None else None
        if order is not None:
            for victim in order.victims:
                if victim.phase == "stopping":
                    self._make_cold(victim)
        return order

    @staticmethod
    def _idle_until(state: _Model, now: float, keep_alive_s: float | None) -> float | None:
        keep_s = state.ttl_s if keep_alive_s is None else keep_alive_s
        return None if keep_s is None or state.pinned or keep_s == math.inf else now + keep_s

    # Inside: decisions

    def _settle(self, now: float) -> list[Effect]:
        """Whatever can be done now is done: gates, grants, then switches for which there is room."""
        effects: list[Effect] = []
        plans = self._plan(now, effects) if self._waiting else self._no_plan()
        for state in self._models.values():
            if state.phase == "ready" and state.line:
                self._admit(state, now, effects)
        for plan in plans:
            if self._has_room(plan, now):
                effects.append(self._order(plan.model, plan.victims, now))
        for state in self._models.values():
            if state.phase == "ready" and not state.running:
                expired = state.idle_until is not None and now >= state.idle_until
                if state.leaving or (expired and not state.line):
                    effects.append(self._stop(state))
        return effects

    def _admit(self, state: _Model, now: float, effects: list[Effect]) -> None:
        while state.running < state.parallel and not state.leaving:
            waiter = state.line.head()
            if waiter is None or not self._passes(state, waiter, now):
                return
            state.batch = max(0, state.batch - 1)
            self._take(waiter.ticket.id)
            self._turns.serve(waiter)
            effects.append(self._grant(waiter.ticket, state, now))

    def _passes(self, state: _Model, waiter: Waiter, now: float) -> bool:
        """Whether the waiter gets in although somebody else's patience ran out."""
        gate = state.gate
        if gate is None or waiter.rank < gate.rank:
            return True
        if not state.batch:
            return False
        # The batch is served together, except that a crowd of one client does not hold up another client for longer
        # than its patience: then nobody is more than a turn ahead.
        if now <= state.since + self._rules.patience_s or state.line.has_client(gate.ticket.client):
            return True
        return waiter.rank[1] < gate.rank[1] + 1.0

    def _no_plan(self) -> list[_Plan]:
        self._plan_due = math.inf
        for state in self._models.values():
            state.gate = None
        return []

    def _plan(self, now: float, effects: list[Effect]) -> list[_Plan]:
        """What should be loaded next, in the order of those who wait, and the gates that this takes."""
        self._no_plan()
        wanted: list[tuple[Rank, _Model, Waiter]] = []
        live: dict[str, Resident] = {}
        for state in self._models.values():
            if state.phase != "cold":
                live[state.name] = self._resident(state)
            head = state.line.head()
            if head is not None and state.phase == "cold":
                wanted.append((head.rank, state, head))
            elif head is not None and state.phase == "loading" and state.switch is None:
                effects.append(self._order(state, [], now))  # somebody else's load: joined, so that it reports to us
        plans: list[_Plan] = []
        for _, state, head in sorted(wanted, key=lambda entry: entry[0]):
            names = evict(self._resident(state), live.values(), self._room)
            if names is None:
                effects += self._refuse_line(state, "does_not_fit", now, None)
                continue
            due = state.line.oldest_at() + self._rules.patience_s
            if any(live[name].use == "moving" for name in names):
                # Its turn comes after a switch that is under way or comes first; its patience counts for that one too.
                for plan in plans:
                    plan.due = min(plan.due, due)
                continue
            for name in names:
                del live[name]
            live[state.name] = self._resident(state, "moving")
            plans.append(_Plan(state, head, [self._models[name] for name in sorted(names)], due))
        for plan in plans:
            for victim in plan.victims:
                self._close(victim, plan, now)
        return plans

    def _close(self, victim: _Model, plan: _Plan, now: float) -> None:
        patience_s = self._rules.patience_s
        for due in (plan.due, victim.since + patience_s, victim.since + self._rules.min_residency_s):
            if due > now:
                self._plan_due = min(self._plan_due, due)
        if now >= plan.due:
            victim.gate = plan.head

    def _resident(self, state: _Model, use: Use | None = None) -> Resident:
        if use is None:
            use = (
                "moving"
                if state.phase in ("loading", "stopping")
                else "busy"
                if state.running or state.line
                else "idle"
            )
        # Busy ones by the time they became ready: by last use, two busy models would be drained in turns, neither ever empty.
        used_at = state.since if use == "busy" else state.used_at
        return Resident(
            model=state.name, memory_bytes=state.memory_bytes, pinned=state.pinned, use=use, used_at=used_at
        )  # fmt: skip

    def _has_room(self, plan: _Plan, now: float) -> bool:
        """Whether the victims are free to go, and what stays (also what is only about to stop) leaves enough room."""
        for victim in plan.victims:
            if victim.running or now < victim.since + self._rules.min_residency_s:
                return False
        if not self._room.exclusive and self._room.budget_bytes is None:
            return True
        rest = [
            self._resident(state)
            for state in self._models.values()
            if state.phase != "cold" and state not in plan.victims
        ]
        return evict(self._resident(plan.model), rest, self._room) == frozenset()

    # Inside: expectations

    def _load_s(self, state: _Model) -> float:
        return _LOAD_S if state.load_s is None else state.load_s

    def _service_s(self, state: _Model) -> float:
        return _SERVICE_S if state.service_s is None else state.service_s

    def _until_room(self, state: _Model) -> float:
        """Until the loads and answers that come before a load of `state` are over, roughly."""
        head = state.line.head()
        seconds = 0.0
        for other in self._models.values():
            if other is state:
                continue
            if other.phase == "loading" or (
                other.phase == "cold" and (first := other.line.head()) and (head is None or first.rank < head.rank)
            ):
                seconds += self._load_s(other) + len(other.line) * self._service_s(other) / other.parallel
            elif other.phase == "ready" and other.running:
                seconds += self._service_s(other)
        return seconds

    def _until_place(self, now: float) -> float:
        """Until one of those who wait is served and leaves a place in the queue."""
        first = math.inf
        for state in self._models.values():
            if not state.line:
                continue
            if state.phase == "ready":
                first = min(first, self._service_s(state) / state.parallel)
            elif state.phase == "loading":
                load = self._load_s(state)
                first = min(first, max(load - (now - state.since), 0.1 * load))
            else:
                first = min(first, self._until_room(state) + self._load_s(state))
        return 0.0 if first == math.inf else first
