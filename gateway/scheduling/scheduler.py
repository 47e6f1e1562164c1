"""Decides, for one host, who may use which model when, and what must be loaded and stopped for that.

Plain decisions: no task, no clock, no socket. Every method takes the time and returns what is to be done about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from hostler.gateway.scheduling.estimates import Forecast, forecast, rests_on_seen, until_place, until_served
from hostler.gateway.scheduling.model import Model, Room
from hostler.gateway.scheduling.policy import Plan, plan
from hostler.gateway.scheduling.queue import AdmissionControl, FairQueue, Line, Ticket, Waiter
from hostler.gateway.scheduling.types import Cause, Effect, Grant, Refuse, SchedulerRules, Switch, Unload
from hostler.gateway.scheduling.views import NOWHERE, Nearness, SchedulerView, nearness, seen
from hostler.supervisor.contract import Failure, HostStatus, ModelStatus


class _Lease(msgspec.Struct, frozen=True):
    model: Model
    process: int
    since: float


class _Order(msgspec.Struct, eq=False):
    """A switch that was ordered and has not reported yet."""

    model: Model
    victims: list[Model]


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
        self._models: dict[str, Model] = {}
        self._answers: Mapping[str, Sequence[float]] = {}
        self._waiting: dict[int, Model] = {}
        self._leases: dict[int, _Lease] = {}
        self._orders: dict[int, _Order] = {}
        self._switches = 0
        self._turns = FairQueue()
        self._places = AdmissionControl(rules.max_waiting)
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
        if not model.running:
            model.use(now, keep_alive_s)
        elif not model.line:
            return []
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
        state.become_ready(now, parallel)
        return self._settle(now)

    def failed(self, switch_id: int, model: str, now: float, failure: Failure | None = None) -> list[Effect]:
        """The switch came to nothing: those who wait for its model are refused, and the model before it comes back.

        What it evicted is taken to be stopped; ordering it again is harmless if that is wrong.
        """
        order = self._end(switch_id)
        state = self._models.get(model)
        if state is None or state.switch != switch_id:
            return self._settle(now) if order else []
        state.become_cold()
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
        state.become_cold()
        return self._settle(now)

    def unloaded(self, model: str, now: float) -> list[Effect]:
        """An `Unload` was carried out, or failed. If a fresh process is there already, this says nothing of it."""
        state = self._models.get(model)
        return self.gone(model, now) if state is not None and state.phase == "stopping" else []

    def unload(self, model: str, now: float, *, force: bool = False) -> list[Effect]:
        """Somebody asked for `model` to be stopped: its queue is refused; it is stopped when the running answers have
        ended, or at once with `force`. Later requests wait for a fresh process."""
        state = self._models.get(model)
        if state is None:
            return []
        effects: list[Effect] = self._refuse_line(state, "unloaded", now, None)
        if state.phase == "loading":
            effects.append(self._stop(state))  # the result of its switch will find nobody
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
            if profile.name not in self._models:
                self._models[profile.name] = Model(profile.name, Line())
                self._recall(self._models[profile.name])
            self._models[profile.name].learn_profile(profile, now)
        for state in list(self._models.values()):
            state.known = state.name in profiles
            if not state.known:
                effects += self._refuse_line(state, "unknown_model", now, None)
            self._reconcile(state, statuses.get(state.name), now)
            if not state.known and state.phase == "cold":
                del self._models[state.name]
        return effects + self._settle(now)

    def remember(self, answers: Mapping[str, Sequence[float]]) -> None:
        """How long answers of each model took in an earlier life, the oldest first. What was seen in this one counts
        more."""
        self._answers = answers
        for state in self._models.values():
            self._recall(state)

    def lost(self, now: float) -> list[Effect]:
        """The supervisor does not answer: nobody waits for it. Models that were ready may still answer."""
        self._connected = False
        effects: list[Effect] = []
        for state in self._models.values():
            effects += self._refuse_line(state, "host_gone", now, None)
        return effects + self._settle(now)

    # Time

    def tick(self, now: float) -> list[Effect]:
        """Time has passed. Too early or too often does no harm."""
        effects: list[Effect] = []
        for state in self._models.values():
            while state.line and now >= state.line.oldest().at + self._rules.max_wait_s:
                waiter = self._take(state.line.oldest().id)
                self._turns.leave(waiter)
                effects.append(self._refuse(waiter.ticket, "wait_limit", now))
        return effects + self._settle(now)

    def next_deadline(self) -> float | None:
        """When `tick` is due. A grant never makes it earlier, so a timer need not be set again after one."""
        due = self._plan_due
        for state in self._models.values():
            if state.line:
                due = min(due, state.line.oldest().at + self._rules.max_wait_s)
            elif state.idle_until is not None and state.phase == "ready":
                due = min(due, state.idle_until)
        return None if due == math.inf else due

    # What others are told

    def waits(self, ticket_id: int) -> bool:
        """Whether the ticket is in line."""
        return ticket_id in self._waiting

    def position(self, ticket_id: int) -> int | None:
        """How many are served before this ticket, plus one; `None` if it does not wait."""
        model = self._waiting.get(ticket_id)
        if model is None:
            return None
        order = [waiter.ticket.id for waiter in self._in_order()]
        return order.index(ticket_id) + 1

    def nearness(self, model: str, now: float) -> Nearness:
        """How near a request for `model` is to being served here."""
        state = self._models.get(model)
        if state is None or not state.known or (state.phase != "ready" and not self._connected):
            return NOWHERE
        return nearness(state, self._models.values(), self._room, now)

    def snapshot(self) -> SchedulerView:
        """Everything, for dashboards."""
        waiting = tuple(waiter.ticket for waiter in self._in_order())
        models = tuple(seen(state) for state in self._models.values())
        return SchedulerView(models=models, waiting=waiting, max_waiting=self._rules.max_waiting)

    def estimate(self, model: str, now: float, ticket_id: int | None = None) -> float:
        """In how many seconds a request for `model` that comes now, or the ticket in line, would be served, from what
        was seen so far."""
        state = self._models.get(model)
        if state is None:
            return 0.0
        return self.estimate_behind(
            model, len(state.line) if ticket_id is None else state.line.ahead_of(ticket_id), now
        )

    def estimate_behind(self, model: str, ahead: int, now: float) -> float:
        """The same for a request that is served after so many others in line for the model."""
        state = self._models.get(model)
        return 0.0 if state is None else until_served(state, ahead, self._models.values(), now)

    def forecast(self, model: str, now: float) -> Forecast | None:
        """What would happen if `model` were asked for now; `None` if this host has no such model."""
        state = self._models.get(model)
        if state is None or not state.known:
            return None
        return forecast(state, self._models, self._room, self.estimate(model, now), now)

    def knows_time(self, model: str, ticket_id: int | None = None) -> bool:
        """Whether `estimate` rests only on loads and answers that were seen."""
        state = self._models.get(model)
        if state is None:
            return False
        ahead = len(state.line) if ticket_id is None else state.line.ahead_of(ticket_id)
        return rests_on_seen(state, ahead, self._models.values())

    # Inside: tickets

    def _grant(self, ticket: Ticket, model: Model, now: float) -> Grant:
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
            retry_after_s = max(1.0, until_place(self._models.values(), now))
        elif cause == "wait_limit":
            retry_after_s = max(1.0, self.estimate(ticket.model, now))
        return Refuse(
            ticket=ticket.id, model=ticket.model, cause=cause, retry_after_s=retry_after_s, failure=failure
        )  # fmt: skip

    def _refuse_line(self, model: Model, cause: Cause, now: float, failure: Failure | None) -> list[Effect]:
        effects: list[Effect] = []
        for waiter in model.line.waiters():
            self._turns.leave(self._take(waiter.ticket.id))
            effects.append(self._refuse(waiter.ticket, cause, now, failure))
        return effects

    def _in_order(self) -> list[Waiter]:
        everybody = [waiter for state in self._models.values() for waiter in state.line.waiters()]
        return sorted(everybody, key=lambda waiter: waiter.rank)

    # Inside: models

    def _recall(self, state: Model) -> None:
        if state.seen_service_s is None:
            for seconds in self._answers.get(state.name, ()):
                state.learn_service(seconds)

    def _reconcile(self, state: Model, status: ModelStatus | None, now: float) -> None:
        seen = "stopped" if status is None else status.state
        if status is not None and status.failure is not None and seen == "failed" and status.failure.retry_after_s:
            state.failure, state.failed_until = status.failure, now + status.failure.retry_after_s
        elif seen in ("starting", "ready"):
            state.failed_until = -math.inf
        if state.switch is not None:
            return  # our own order reports by itself; the snapshot may be older than the order
        if seen == "ready" and state.phase in ("cold", "loading"):
            state.become_ready(now, 0)
        elif seen == "starting" and state.phase in ("cold", "ready"):
            state.become_loading(now, None)
        elif seen == "stopping" and state.phase != "stopping":
            state.become_stopping()
        elif seen in ("stopped", "backoff", "failed"):
            state.become_cold()

    def _order(self, state: Model, victims: list[Model], now: float) -> Switch:
        for victim in victims:
            victim.become_stopping()
        self._switches += 1
        state.become_loading(now, self._switches)
        self._orders[self._switches] = _Order(state, victims)
        return Switch(id=self._switches, model=state.name, evict=tuple(victim.name for victim in victims))

    def _end(self, switch_id: int | None) -> _Order | None:
        """The order reported: what it stopped is stopped."""
        order = self._orders.pop(switch_id, None) if switch_id is not None else None
        if order is not None:
            for victim in order.victims:
                if victim.phase == "stopping":
                    victim.become_cold()
        return order

    @staticmethod
    def _stop(state: Model) -> Unload:
        state.become_stopping()
        return Unload(model=state.name)

    # Inside: decisions

    def _settle(self, now: float) -> list[Effect]:
        """Whatever can be done now is done: gates, grants, then switches for which there is room."""
        effects: list[Effect] = []
        plans = self._plan(now, effects) if self._waiting else self._no_plan()
        for state in self._models.values():
            if state.phase == "ready" and state.line:
                self._admit(state, now, effects)
        for each in plans:
            if each.has_room(self._models.values(), self._room, self._rules, now):
                effects.append(self._order(each.model, each.victims, now))
        for state in self._models.values():
            if state.phase == "ready" and not state.running:
                expired = state.idle_until is not None and now >= state.idle_until
                if state.leaving or (expired and not state.line):
                    effects.append(self._stop(state))
        return effects

    def _admit(self, state: Model, now: float, effects: list[Effect]) -> None:
        while state.running < state.parallel and not state.leaving:
            waiter = state.line.head()
            if waiter is None or not self._passes(state, waiter, now):
                return
            state.batch = max(0, state.batch - 1)
            self._take(waiter.ticket.id)
            self._turns.serve(waiter)
            effects.append(self._grant(waiter.ticket, state, now))

    def _passes(self, state: Model, waiter: Waiter, now: float) -> bool:
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

    def _no_plan(self) -> list[Plan]:
        self._plan_due = math.inf
        for state in self._models.values():
            state.gate = None
        return []

    def _plan(self, now: float, effects: list[Effect]) -> list[Plan]:
        """What may be loaded next, in the order of those who wait, with the gates that this takes."""
        self._no_plan()
        made = plan(self._models, self._room, self._rules)
        for state in made.joined:
            effects.append(self._order(state, [], now))  # so that it reports to us
        for state in made.unfit:
            effects += self._refuse_line(state, "does_not_fit", now, None)
        for each in made.plans:
            self._plan_due = min(self._plan_due, each.later(self._rules, now))
            if now >= each.due:
                for victim in each.victims:
                    victim.gate = each.head
        return made.plans
