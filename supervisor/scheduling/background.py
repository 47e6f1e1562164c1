"""Background work of a host: tickets that are served while it has nothing else to do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from hostler.supervisor.scheduling.model import ScheduledModel
from hostler.supervisor.scheduling.queue import Ticket

#: A model stays loaded for so long after background work, in seconds: more of it may follow at once.
LINGER_S = 1.0


class BackgroundWork:
    """Background tickets, in the order of their arrival, and those that hold a lease.

    `due` is when time alone changes what can be done next, infinite if no ticket waits. `used_at` is when the last
    other request came or ended.
    """

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.loading: ScheduledModel | None = None
        self.due = math.inf
        self.used_at = -math.inf
        self._tickets: dict[int, Ticket] = {}
        self._ended_at = -math.inf

    def __bool__(self) -> bool:
        """Whether a ticket waits."""
        return bool(self._tickets)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self._tickets

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait."""
        self._tickets[ticket.id] = ticket

    def remove(self, ticket_id: int) -> None:
        """A ticket does not wait any more."""
        self._tickets.pop(ticket_id, None)
        if not self._tickets:
            self.due = math.inf

    def serve(self, ticket: Ticket) -> None:
        """A ticket was granted."""
        self.remove(ticket.id)
        self.running.add(ticket.id)

    def released(self, ticket_id: int, now: float) -> bool:
        """A lease has ended; whether it was one of these."""
        if ticket_id not in self.running:
            self.used_at = now
            return False
        self.running.discard(ticket_id)
        self._ended_at = now
        return True

    def take(self, model: str | None = None) -> list[Ticket]:
        """Remove the waiting tickets of a model, or all, to refuse them."""
        taken = [ticket for ticket in self._tickets.values() if model is None or ticket.model == model]
        for ticket in taken:
            self.remove(ticket.id)
        return taken

    def tickets(self) -> tuple[Ticket, ...]:
        """The waiting tickets, in the order of their arrival."""
        return tuple(self._tickets.values())

    def of_loaded(self, models: Collection[ScheduledModel]) -> Iterator[tuple[Ticket, ScheduledModel]]:
        """The waiting tickets whose models are ready."""
        ready = {model.name: model for model in models if model.phase == "ready" and not model.unloading}
        for ticket in self.tickets():
            if (model := ready.get(ticket.model)) is not None:
                yield ticket, model

    @property
    def last_at(self) -> float:
        """When the last request came or ended, background work included."""
        return max(self.used_at, self._ended_at)

    def may_load_at(self, idle_s: float) -> float:
        """When a model may be loaded, as long as nothing comes: the host is idle, and the last work has no successor."""
        return max(self.used_at + idle_s, self._ended_at + LINGER_S)
