"""What a scheduler does next: who is served, what is loaded and stopped for that, and what is prepared meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from hostler.supervisor.scheduling.eviction import leases_in_the_way, models_to_evict
from hostler.supervisor.scheduling.model import ScheduledModel
from hostler.supervisor.scheduling.policy import PlannedLoad, default_return, passes_barrier, plan_loads
from hostler.supervisor.scheduling.steps import SchedulerSteps
from hostler.supervisor.scheduling.types import Decision, PrepareNext, RefusalReason, SchedulerSettings


class SchedulerPlans(SchedulerSteps):
    """Plans loads, and decides what can be decided now; `Scheduler` says what has happened."""

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings)
        self._plan_due = math.inf
        self._return_s: float | None = None
        self._returned_at = 0.0

    def _settle(self, now: float) -> list[Decision]:
        """Decide whatever can be decided now: barriers, grants, then switches for which there is memory."""
        decisions = self._end_overlaps() if self._overlapping else []
        plans = self._plan(now, decisions) if self._waiting else self._no_plan()
        for state in self._models.values():
            if state.phase == "ready" and state.queue:
                self._admit(state, now, decisions)
        for each in plans:
            if each.can_start(self._models.values(), self._capacity, self._settings, now):
                decisions.append(self._start_switch(each.model, each.victims, now))
        if plans or self._next is not None:
            decisions += self._prepare_next(plans, now)
        for state in self._models.values():
            if state.phase == "ready" and not state.running:
                expired = state.idle_until is not None and now >= state.idle_until
                leaves = self._draining and state.model_lease is None
                if state.unloading or leaves or (expired and not state.queue):
                    decisions.append(self._stop(state))
        if self._background:
            self._serve_background(now, decisions)
        return decisions or self._return_to_default(now)

    def _prepare_next(self, plans: Sequence[PlannedLoad], now: float) -> list[Decision]:
        """Have the first load prepared that waits for running answers."""
        load = next((each for each in plans if each.victims and each.model.phase == "cold"), None)
        if load is None:
            before, self._next = self._next, None
            return [] if before is None else [PrepareNext(model=None)]
        model, start = load.model.name, now >= load.may_overlap_at(self._settings)
        if self._next is not None and self._next.model == model and (self._next.start or not start):
            return []
        self._next = PrepareNext(model=model, start=start)
        if start:
            self._overlapping.add(model)
        return [self._next]

    def _end_overlaps(self) -> list[Decision]:
        """Models that were started while others finished their answers are ready: the others stop when they have, or the
        new one at once if nothing waits for it any more."""
        decisions: list[Decision] = []
        for loaded in [state for state in self._loaded() if state.phase == "ready" and state.name in self._overlapping]:
            self._overlapping.discard(loaded.name)
            others = [state for state in self._loaded() if state is not loaded and state.phase == "ready"]
            names = models_to_evict(loaded.footprint(), (state.footprint() for state in others), self._capacity)
            if names and not loaded.queue and not loaded.pinned and loaded.model_lease is None:
                decisions.append(self._stop(loaded))
            for state in others:
                if names and loaded.phase == "ready" and state.name in names:
                    state.unloading = state.displaced = True
        return decisions

    def _serve_background(self, now: float, decisions: list[Decision]) -> None:
        """Grant background work of loaded models, else load the model of the oldest, if nothing else is to be done."""
        work = self._background
        work.due = math.inf
        if self._waiting or self._switches or not self._connected or len(self._leases) > len(work.running):
            return
        grouped = bool(work.running)
        for ticket, model in work.of_loaded(self._models.values()):
            grouped = True
            if model.running < model.parallel:
                work.serve(ticket)
                decisions.append(self._grant(ticket, model, now))
        if grouped or any(state.phase in ("loading", "stopping") for state in self._models.values()):
            return
        work.due = work.may_load_at(self._settings.idle_s)
        if now >= work.due:
            work.due = math.inf
            self._load_for_background(now, decisions)

    def _load_for_background(self, now: float, decisions: list[Decision]) -> None:
        for ticket in self._background.tickets():
            state = self._models.get(ticket.model)
            if state is None or not state.known:
                decisions += self._refuse_background(ticket.model, "unknown_model", now, None)
                continue
            loaded = [other.footprint() for other in self._loaded()]
            names = models_to_evict(state.footprint(), loaded, self._capacity)
            if names is None:
                leased = leases_in_the_way(state.footprint(), loaded, self._capacity)
                lease = next((self._models[name].model_lease for name in sorted(leased)), None)
                reason: RefusalReason = "does_not_fit" if lease is None else "leased"
                refused = self._refuse_background(ticket.model, reason, now, None)
                decisions += [msgspec.structs.replace(each, model_lease=lease) for each in refused]
                continue
            victims = [self._models[name] for name in sorted(names)]
            stays_until = max((each.since + self._settings.min_residency_s for each in victims), default=now)
            if now < stays_until:
                self._background.due = stays_until
            else:
                self._background.loading = state
                decisions.append(self._start_switch(state, victims, now))
            return

    def _return_to_default(self, now: float) -> list[Decision]:
        returning = self._return_due()
        if returning is None or now < returning[0]:
            return []
        self._returned_at = now
        default = returning[1]
        names = models_to_evict(default.footprint(), (state.footprint() for state in self._loaded()), self._capacity)
        if names is None or now < default.failed_until:
            return []
        return [self._start_switch(default, [self._models[name] for name in sorted(names)], now)]

    def _return_due(self) -> tuple[float, ScheduledModel] | None:
        busy = self._waiting or self._switches or self._background or self._background.running or self._draining
        if self._return_s is None or busy or not self._connected:
            return None
        return default_return(self._models.values(), self._returned_at, self._return_s)

    def _admit(self, state: ScheduledModel, now: float, decisions: list[Decision]) -> None:
        while state.running < state.parallel and not state.unloading:
            entry = state.queue.head()
            if entry is None or not passes_barrier(state, entry, self._settings.patience_s, now):
                return
            state.batch = max(0, state.batch - 1)
            self._dequeue(entry.ticket.id)
            self._queue.serve(entry, now)
            decisions.append(self._grant(entry.ticket, state, now))

    def _no_plan(self) -> list[PlannedLoad]:
        self._plan_due = math.inf
        for state in self._models.values():
            state.barrier = None
        return []

    def _plan(self, now: float, decisions: list[Decision]) -> list[PlannedLoad]:
        """The loads that may come next, in the order of service, with the barriers they require."""
        self._no_plan()
        plan = plan_loads(self._models, self._capacity, self._settings)
        for state in plan.adopted:
            decisions.append(self._start_switch(state, [], now))  # so that it reports to us
        for state in plan.impossible:
            decisions += self._refuse_queue(state, "does_not_fit", now, None)
        for state, model_lease in plan.barred:
            refused = self._refuse_queue(state, "leased", now, None)
            decisions += [msgspec.structs.replace(each, model_lease=model_lease) for each in refused]
        for each in plan.loads:
            self._plan_due = min(self._plan_due, each.next_check(self._settings, now))
            if now >= each.due:
                for victim in each.victims:
                    victim.barrier = each.head
        return plan.loads
