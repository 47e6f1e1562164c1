"""What the scheduler of a host knows, and what follows from it for those who wait or look."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from hostler.supervisor.scheduling.estimates import SwitchEstimate, estimate_switch, is_measured, seconds_until_served
from hostler.supervisor.scheduling.eviction import HostCapacity
from hostler.supervisor.scheduling.model import ScheduledModel
from hostler.supervisor.scheduling.queue import QueueEntry, Ticket
from hostler.supervisor.scheduling.types import SchedulerSettings
from hostler.supervisor.scheduling.views import (
    NO_OUTLOOK,
    UNAVAILABLE,
    HostOffer,
    SchedulerView,
    ServiceDistance,
    ServiceOutlook,
    offer_by,
    service_distance,
    service_outlook,
    view_of,
)


class GrantedTicket(msgspec.Struct, frozen=True):
    """The lease of a ticket: of which process of its model, and since when."""

    model: ScheduledModel
    generation: int
    since: float


class HostSchedule:
    """The models of a host, the tickets that wait for them and those that were granted. Reads only: `Scheduler` decides."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._capacity = HostCapacity()
        self._connected = self._draining = False
        self._models: dict[str, ScheduledModel] = {}
        self._waiting: dict[int, ScheduledModel] = {}
        self._leases: dict[int, GrantedTicket] = {}

    def is_waiting(self, ticket_id: int) -> bool:
        """Whether the ticket is queued."""
        return ticket_id in self._waiting

    def position(self, ticket_id: int) -> int | None:
        """The ticket's place in the order of service, from 1; `None` if it is not queued."""
        model = self._waiting.get(ticket_id)
        if model is None:
            return None
        order = [entry.ticket.id for entry in self._entries()]
        return order.index(ticket_id) + 1

    def distance(self, model: str, now: float) -> ServiceDistance:
        """How far a request for `model` is from being served here."""
        state = self._models.get(model)
        if state is None or not state.known or (state.phase != "ready" and not self._connected) or self._draining:
            return UNAVAILABLE
        return service_distance(state, self._models.values(), self._capacity, now)

    def offer(self, model: str, read_before: int, now: float) -> HostOffer:
        """What a request for `model` is offered here."""
        state = self._models.get(model)
        return offer_by(None if state is None else view_of(state), self.distance(model, now), read_before)

    def outlooks(self, now: float) -> dict[str, ServiceOutlook]:
        """What every model's `distance` follows from."""
        others = {state.name: state.footprint() for state in self._loaded()}
        return {
            name: service_outlook(state, self._models.values(), others, self._capacity, now)
            if state.known and not self._draining
            else NO_OUTLOOK
            for name, state in self._models.items()
        }

    def view(self) -> SchedulerView:
        """The whole host, for dashboards."""
        waiting = tuple(entry.ticket for entry in self._entries())
        models = tuple(view_of(state) for state in self._models.values())
        return SchedulerView(models=models, waiting=waiting, max_waiting=self._settings.max_waiting)

    def estimate_s(self, model: str, now: float, ticket_id: int | None = None) -> float:
        """Estimated seconds until the queued ticket, or else a request for `model` that arrives now, is served."""
        state = self._models.get(model)
        if state is None:
            return 0.0
        ahead = len(state.queue) if ticket_id is None else state.queue.ahead_of(ticket_id)
        self._note_oldest_answers()
        return seconds_until_served(state, ahead, self._models.values(), now)

    def in_order(self, now: float) -> Iterator[tuple[Ticket, float]]:
        """The queued tickets in the order of service, with their estimated waits: none is served before an earlier one."""
        self._note_oldest_answers()
        models, latest = self._models.values(), 0.0
        firsts = {state.name: seconds_until_served(state, 0, models, now) for state in models if state.queue}
        ahead = dict.fromkeys(firsts, 0)
        for entry in self._entries():
            name = entry.ticket.model
            state = self._models[name]
            latest = max(latest, firsts[name] + ahead[name] * state.service_s / state.parallel)
            ahead[name] += 1
            yield entry.ticket, latest

    def is_measured(self, model: str, now: float, ticket_id: int | None = None) -> bool:
        """Whether `estimate_s` rests on measured loads and answers alone, and none takes longer than usual."""
        state = self._models.get(model)
        if state is None:
            return False
        ahead = len(state.queue) if ticket_id is None else state.queue.ahead_of(ticket_id)
        self._note_oldest_answers()
        return is_measured(state, ahead, self._models.values(), now)

    def _note_oldest_answers(self) -> None:
        for state in self._models.values():
            state.serving_since = None
        for lease in self._leases.values():
            if lease.generation == lease.model.generation:
                since = lease.model.serving_since
                lease.model.serving_since = lease.since if since is None else min(since, lease.since)

    def estimate_switch(self, model: str, now: float) -> SwitchEstimate | None:
        """What a request for `model` would take and displace now; `None` if this host has no such model."""
        state = self._models.get(model)
        if state is None or not state.known:
            return None
        return estimate_switch(state, self._models, self._capacity, self.estimate_s(model, now), now)

    def _entries(self) -> list[QueueEntry]:
        entries = [entry for state in self._models.values() for entry in state.queue.entries()]
        return sorted(entries, key=lambda entry: entry.rank)

    def _loaded(self) -> Iterator[ScheduledModel]:
        """The models that occupy memory."""
        return (state for state in self._models.values() if state.occupies_memory)
