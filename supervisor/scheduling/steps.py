"""The single steps that a scheduler's decisions consist of."""

from __future__ import annotations

import msgspec

from hostler.supervisor.contract import Failure
from hostler.supervisor.scheduling.admission import AdmissionControl
from hostler.supervisor.scheduling.background import BackgroundWork
from hostler.supervisor.scheduling.estimates import queue_slots
from hostler.supervisor.scheduling.model import ScheduledModel
from hostler.supervisor.scheduling.queue import FairQueue, QueueEntry, Ticket
from hostler.supervisor.scheduling.schedule import GrantedTicket, HostSchedule
from hostler.supervisor.scheduling.types import (
    Grant,
    PrepareNext,
    RefusalReason,
    Refuse,
    SchedulerSettings,
    StartSwitch,
    Unload,
)


class _Switch(msgspec.Struct, eq=False):
    """A switch that was ordered and has not reported yet."""

    model: ScheduledModel
    victims: list[ScheduledModel]


class SchedulerSteps(HostSchedule):
    """Grants, refuses, begins and ends switches; `SchedulerPlans` decides when."""

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings)
        self._switches: dict[int, _Switch] = {}
        self._switch_count = 0
        self._queue = FairQueue()
        self._admission = AdmissionControl(settings.max_waiting)
        self._background = BackgroundWork()
        #: What is being prepared for the next load.
        self._next: PrepareNext | None = None
        #: Models that may have been started beside those that will stop for them.
        self._overlapping: set[str] = set()

    @property
    def used_at(self) -> float:
        """When the last ticket came, or its lease ended."""
        return self._background.last_at

    def _grant(self, ticket: Ticket, model: ScheduledModel, now: float) -> Grant:
        model.running += 1
        model.idle_until = None
        self._leases[ticket.id] = GrantedTicket(model, model.generation, now)
        return Grant(ticket=ticket.id, model=model.name)

    def _dequeue(self, ticket_id: int) -> QueueEntry:
        model = self._waiting.pop(ticket_id)
        entry = model.queue.remove(ticket_id)
        model.batch = min(model.batch, len(model.queue))
        return entry

    def _refuse(self, ticket: Ticket, reason: RefusalReason, now: float, failure: Failure | None = None) -> Refuse:
        model = self._models.get(ticket.model)
        retry_after_s = 0.0
        if reason == "load_failed" and model is not None and now < model.failed_until:
            failure, retry_after_s = model.failure, model.failed_until - now
        elif reason == "queue_full":
            first_s, interval_s = queue_slots(self._models.values(), self._models.values(), now)
            retry_after_s = self._admission.retry_after_s(ticket, first_s, interval_s, now)
        elif reason == "model_queue_full" and model is not None and model.admission is not None:
            first_s, interval_s = queue_slots([model], self._models.values(), now)
            retry_after_s = model.admission.retry_after_s(ticket, first_s, interval_s, now)
        elif reason == "wait_limit":
            retry_after_s = max(1.0, self.estimate_s(ticket.model, now))
        return Refuse(
            ticket=ticket.id, model=ticket.model, reason=reason, retry_after_s=retry_after_s, failure=failure
        )  # fmt: skip

    def _waits_until(self, state: ScheduledModel, now: float) -> float:
        """When the first entry of the model's queue has waited long enough: the oldest, whatever loads it waited for."""
        return state.waits_until(state.queue.oldest().at, self._settings.max_wait_s, now)

    def _refuse_queue(
        self, model: ScheduledModel, reason: RefusalReason, now: float, failure: Failure | None
    ) -> list[Refuse]:
        decisions: list[Refuse] = []
        for entry in model.queue.entries():
            self._queue.leave(self._dequeue(entry.ticket.id))
            decisions.append(self._refuse(entry.ticket, reason, now, failure))
        return decisions

    def _start_switch(self, state: ScheduledModel, victims: list[ScheduledModel], now: float) -> StartSwitch:
        for victim in victims:
            victim.become_stopping()
            victim.displaced = True
        if self._next is not None and self._next.model == state.name:
            self._next = None  # the switch takes over
        if victims:
            self._overlapping.discard(state.name)
        self._switch_count += 1
        state.become_loading(now, self._switch_count)
        self._switches[self._switch_count] = _Switch(state, victims)
        return StartSwitch(id=self._switch_count, model=state.name, evict=tuple(victim.name for victim in victims))

    def _finish(self, switch_id: int | None) -> _Switch | None:
        """The switch reported: its victims are stopped."""
        switch = self._switches.pop(switch_id, None) if switch_id is not None else None
        if switch is not None:
            if switch.model is self._background.loading:
                self._background.loading = None
            for victim in switch.victims:
                if victim.phase == "stopping":
                    victim.become_cold()
        return switch

    @staticmethod
    def _stop(state: ScheduledModel) -> Unload:
        state.become_stopping()
        return Unload(model=state.name)

    def _refuse_background(
        self, model: str | None, reason: RefusalReason, now: float, failure: Failure | None
    ) -> list[Refuse]:
        return [self._refuse(ticket, reason, now, failure) for ticket in self._background.take(model)]
