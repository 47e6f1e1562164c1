"""Queued requests in the order of service: priority first, then fair shares between clients, then age."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from typing import Final

import msgspec

#: The highest priority of a ticket; the lowest is its negative.
MAX_PRIORITY: Final = 1_000_000

#: (negative priority, virtual time, arrival time, arrival number): the lowest is served first.
QueueRank = tuple[int, float, float, int]

#: So many moments at which tickets were served are remembered at least.
_REMEMBERED: Final = 500


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a model. `at` is its arrival in seconds, perhaps at another host; tickets of different `client`s
    share the host fairly.

    `client_port` is that of the client's connection, by which its next request is recognised; 0 if unknown. `background`:
    it is served while the host has nothing else to do.
    """

    id: int
    model: str
    at: float
    client: str = ""
    priority: int = 0
    client_port: int = 0
    background: bool = False


class QueueEntry(msgspec.Struct, frozen=True):
    """A queued ticket, and its rank among the tickets of all models."""

    ticket: Ticket
    rank: QueueRank


class FairQueue:
    """Ranks tickets so that clients alternate: ten tickets of one client take ten rounds, one of another takes the
    next.

    This is fair queueing with a virtual clock. The clock advances with every ticket served, so that the number of later
    tickets that overtake a queued one is bounded. A ticket that has waited elsewhere, since `Ticket.at`, is ranked as if it
    had come here then.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._clock_at: list[tuple[float, float]] = [(-math.inf, 0.0)]
        self._arrivals = 0
        self._next_round: dict[str, float] = {}
        self._waiting: dict[str, int] = {}

    def join(self, ticket: Ticket) -> QueueEntry:
        """Rank the ticket behind the earlier ones of its client."""
        then = self._clock_of(ticket.at)
        at = max(then, self._next_round.get(ticket.client, then))
        self._next_round[ticket.client] = at + 1.0
        self._waiting[ticket.client] = self._waiting.get(ticket.client, 0) + 1
        self._arrivals += 1
        return QueueEntry(ticket, (-ticket.priority, at, ticket.at, self._arrivals))

    def serve(self, entry: QueueEntry, now: float) -> None:
        """The entry's ticket was granted."""
        self._clock = max(self._clock + 1.0 / len(self._waiting), entry.rank[1])
        self._clock_at.append((now, self._clock))
        if len(self._clock_at) > 2 * _REMEMBERED:
            del self._clock_at[:_REMEMBERED]
        self.leave(entry)

    def _clock_of(self, at: float) -> float:
        """What the virtual clock showed at a moment, or at the earliest that is remembered."""
        if at >= self._clock_at[-1][0]:
            return self._clock
        place = bisect_right(self._clock_at, at, key=lambda each: each[0])
        return self._clock_at[max(0, place - 1)][1]

    def leave(self, entry: QueueEntry) -> None:
        """The entry's ticket is not queued any more."""
        client = entry.ticket.client
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client], self._next_round[client]

    def waiting(self, client: str) -> int:
        """The number of queued tickets of `client`."""
        return self._waiting.get(client, 0)

    def largest(self) -> int:
        """The number of queued tickets of the client that has the most."""
        return max(self._waiting.values(), default=0)


class ModelQueue:
    """The queue of one model. Adding and removing cost at most the logarithm of its length."""

    def __init__(self) -> None:
        self._entries: dict[int, QueueEntry] = {}
        self._by_rank: list[tuple[QueueRank, int]] = []
        self._by_age: list[tuple[float, int]] = []
        self._clients: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self._entries

    def add(self, entry: QueueEntry) -> None:
        """Queue the entry by its rank."""
        ticket = entry.ticket
        self._entries[ticket.id] = entry
        self._clients[ticket.client] = self._clients.get(ticket.client, 0) + 1
        heapq.heappush(self._by_rank, (entry.rank, ticket.id))
        heapq.heappush(self._by_age, (ticket.at, ticket.id))

    def remove(self, ticket_id: int) -> QueueEntry:
        """Remove the entry, wherever it stands. Raises `KeyError` if it is not queued here."""
        entry = self._entries.pop(ticket_id)
        client = entry.ticket.client
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
        # Removed entries stay in the heaps until they come up; too many behind a patient head would only cost memory.
        if max(len(self._by_rank), len(self._by_age)) > 2 * len(self._entries) + 8:
            self._by_rank = [(other.rank, other.ticket.id) for other in self._entries.values()]
            self._by_age = [(other.ticket.at, other.ticket.id) for other in self._entries.values()]
            heapq.heapify(self._by_rank)
            heapq.heapify(self._by_age)
        return entry

    def head(self) -> QueueEntry | None:
        """The entry that is served next."""
        while self._by_rank:
            entry = self._entries.get(self._by_rank[0][1])
            if entry is not None:
                return entry
            heapq.heappop(self._by_rank)
        return None

    def oldest(self) -> Ticket:
        """The ticket that has waited longest: not the first to come, if one was asked for again by its gateway. The queue
        must not be empty."""
        while (entry := self._entries.get(self._by_age[0][1])) is None:
            heapq.heappop(self._by_age)
        return entry.ticket

    def ahead_of(self, ticket_id: int) -> int:
        """How many entries are served before the ticket; all of them if it is not queued here."""
        entry = self._entries.get(ticket_id)
        return sum(entry is None or other.rank < entry.rank for other in self._entries.values())

    def has_client(self, client: str) -> bool:
        """Whether a ticket of `client` is queued here."""
        return client in self._clients

    def entries(self) -> list[QueueEntry]:
        """All entries, in the order of service."""
        return sorted(self._entries.values(), key=lambda entry: entry.rank)
