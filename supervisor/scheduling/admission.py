"""Bounds the queue, and lines up the requests that it has no place for, so that those who obey `Retry-After` get in."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from hostler.supervisor.scheduling.queue import FairQueue, QueueEntry, Ticket

#: The longest `Retry-After`, in seconds. Clients obey no longer ones; a request keeps its place in line.
LONGEST_S: Final = 60

#: How much earlier than asked a request may come back, in seconds, and how much later it still has its place.
EARLY_S: Final = 0.5
LATE_S: Final = 4.0

#: The line advances more slowly than places become free by this factor, since no two answers take equally long.
_SLACK: Final = 1.2

#: The weight of one request in the share of those that come back.
_RATE_STEP: Final = 0.05

#: Places in line, at most. Requests beyond are sent away for the longest time.
_LONGEST_LINE: Final = 2000


class _Place(msgspec.Struct, eq=False):
    """A place in line: its rank, and when its request was asked to come back."""

    entry: QueueEntry
    due: float = math.inf


class AdmissionControl:
    """Admits tickets while fewer than `limit` are queued, and gives each refused one a place in line and a time.

    A request is recognised by its client and the time when it comes back, an early one by its connection. If the queue
    is full again, it keeps its place and gets another time. Places for those that are due are kept free from later ones:
    as many as usually come back, half of all at most, and from clients that are queued already also before they are due.
    Clients alternate in the line as in the queue.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._line: list[_Place] = []
        self._ranks = FairQueue()
        self._return_rate = 1.0

    def __bool__(self) -> bool:
        return bool(self._line)

    def admits(self, ticket: Ticket, queue: FairQueue, queued: int, now: float) -> bool:
        """Whether the ticket may join `queue`, which has `queued` tickets; then it gives up its place in line, if it has
        one."""
        if not self._line:
            return queued < self.limit
        self._drop_no_shows(now)
        place, greedy = self._returning(ticket, now), queue.waiting(ticket.client) > 0
        ahead = sum(
            other.due <= now + EARLY_S or (greedy and not queue.waiting(other.entry.ticket.client))
            for other in self._line
            if other is not place and (place is None or other.entry.rank < place.entry.rank)
        )
        kept = min(round(ahead * self._return_rate), (self.limit + 1) // 2)
        if queued + kept >= self.limit:
            return False
        self.leave(ticket, now)
        return True

    def leave(self, ticket: Ticket, now: float) -> None:
        """The ticket is queued or served: it gives up its place in line, if it has one."""
        place = self._returning(ticket, now)
        if place is not None:
            self._line.remove(place)
            self._ranks.serve(place.entry, now)
            self._observe(returned=True)

    def retry_after_s(self, ticket: Ticket, first_s: float, interval_s: float, now: float) -> float:
        """When the refused ticket should come back, in whole seconds from now.

        `first_s` is the time until the next place in the queue becomes free, `interval_s` the time from each to the next.
        """
        place = self._returning(ticket, now) or self._early(ticket)
        if place is not None:
            self._observe(returned=True)
        else:
            if len(self._line) >= _LONGEST_LINE:
                return LONGEST_S
            place = _Place(self._ranks.join(ticket))
            self._line.append(place)
        ahead = sum(other.entry.rank < place.entry.rank for other in self._line)
        # As many as there are places can come back at once: clients count in whole seconds.
        interval_s = max(interval_s * _SLACK, 1.0 / max(1, self.limit))
        seconds = min(LONGEST_S, max(1, math.ceil(first_s + ahead * interval_s)))
        place.due = now + seconds
        return seconds

    def _returning(self, ticket: Ticket, now: float) -> _Place | None:
        """The first place of the ticket's client whose time has come."""
        mine = (each for each in self._line if each.entry.ticket.client == ticket.client and each.due <= now + EARLY_S)
        return min(mine, key=lambda each: each.entry.rank, default=None)

    def _early(self, ticket: Ticket) -> _Place | None:
        """The place of a request that does not wait as long as it was asked to."""
        port, client = ticket.client_port, ticket.client
        if not port:
            return None
        places = ((each, each.entry.ticket) for each in self._line)
        return next((each for each, it in places if it.client_port == port and it.client == client), None)

    def _observe(self, *, returned: bool) -> None:
        """Average in whether a refused request came back. Those that another backend serves, for example, never do."""
        self._return_rate += _RATE_STEP * (returned - self._return_rate)

    def _drop_no_shows(self, now: float) -> None:
        if all(now <= each.due + LATE_S for each in self._line):
            return
        for each in self._line:
            if now > each.due + LATE_S:
                self._ranks.leave(each.entry)
                self._observe(returned=False)
        self._line = [each for each in self._line if now <= each.due + LATE_S]
