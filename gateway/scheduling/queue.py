"""Those who wait for a model, in the order in which they are served: priority, then turns between clients, then age."""

from __future__ import annotations

import heapq
from collections import OrderedDict

import msgspec

# (minus priority, turn, number of arrival): less is served earlier.
Rank = tuple[int, float, int]


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request waiting for a model. `at` is its arrival, `client` whoever takes turns with others."""

    id: int
    model: str
    at: float
    client: str = ""
    priority: int = 0


class Waiter(msgspec.Struct, frozen=True):
    """A ticket in line, and its place in the order of all lines."""

    ticket: Ticket
    rank: Rank


class FairQueue:
    """Gives out ranks so that clients take turns: ten tickets of one are ten turns, one of another is the next turn.

    This is fair queueing with a virtual clock. The clock moves with every ticket served, so that a ticket once in line
    is overtaken by a limited number of later ones only.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._arrivals = 0
        self._next_turn: dict[str, float] = {}
        self._waiting: dict[str, int] = {}

    def join(self, ticket: Ticket) -> Waiter:
        """The ticket's place behind the earlier tickets of its own client."""
        turn = max(self._clock, self._next_turn.get(ticket.client, self._clock))
        self._next_turn[ticket.client] = turn + 1.0
        self._waiting[ticket.client] = self._waiting.get(ticket.client, 0) + 1
        self._arrivals += 1
        return Waiter(ticket, (-ticket.priority, turn, self._arrivals))

    def serve(self, waiter: Waiter) -> None:
        """The waiter got what it waited for."""
        self._clock = max(self._clock + 1.0 / len(self._waiting), waiter.rank[1])
        self.leave(waiter)

    def leave(self, waiter: Waiter) -> None:
        """The waiter waits no more."""
        client = waiter.ticket.client
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client], self._next_turn[client]

    def waiting(self, client: str) -> int:
        """How many tickets of `client` are in line."""
        return self._waiting.get(client, 0)

    def largest(self) -> int:
        """How many tickets the client with the most of them has in line."""
        return max(self._waiting.values(), default=0)


class AdmissionControl:
    """A limited number of places to wait in, of which a crowd of one client does not get all for good.

    A client that was turned away while another one held several places is kept one until shortly after it was told to
    come back; meanwhile those who wait already get no further place in its stead.
    """

    _GRACE_S = 5.0

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[str, float] = {}

    def free(self, client: str, turns: FairQueue, taken: int, now: float) -> bool:
        """Whether there is a place for one more ticket of `client`."""
        if self._kept and turns.waiting(client):
            self._kept = {other: until for other, until in self._kept.items() if until > now}
            taken += len(self._kept)
        return taken < self.limit

    def take(self, client: str) -> None:
        """A ticket of `client` got a place."""
        self._kept.pop(client, None)

    def keep(self, client: str, turns: FairQueue, until: float) -> None:
        """`client` is turned away and told to come back at `until`. Half of the places at most are kept."""
        if turns.waiting(client) or turns.largest() < 2:
            return
        if client in self._kept or len(self._kept) < self.limit // 2:
            self._kept[client] = until + self._GRACE_S


class Line:
    """The waiters of one model. Joining and leaving cost the logarithm of its length at most."""

    def __init__(self) -> None:
        self._by_age: OrderedDict[int, Waiter] = OrderedDict()
        self._by_rank: list[tuple[Rank, int]] = []
        self._clients: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_age)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self._by_age

    def add(self, waiter: Waiter) -> None:
        """`waiter` joins the line."""
        ticket = waiter.ticket
        self._by_age[ticket.id] = waiter
        self._clients[ticket.client] = self._clients.get(ticket.client, 0) + 1
        heapq.heappush(self._by_rank, (waiter.rank, ticket.id))

    def remove(self, ticket_id: int) -> Waiter:
        """The waiter leaves from wherever it stands."""
        waiter = self._by_age.pop(ticket_id)
        client = waiter.ticket.client
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
        # Entries of those who left stay until they come up; many of them behind a patient head would only be memory.
        if len(self._by_rank) > 2 * len(self._by_age) + 8:
            self._by_rank = [(other.rank, other.ticket.id) for other in self._by_age.values()]
            heapq.heapify(self._by_rank)
        return waiter

    def head(self) -> Waiter | None:
        """Who is served next."""
        while self._by_rank:
            waiter = self._by_age.get(self._by_rank[0][1])
            if waiter is not None:
                return waiter
            heapq.heappop(self._by_rank)
        return None

    def oldest(self) -> Ticket:
        """The one that waits longest. The line must not be empty."""
        return next(iter(self._by_age.values())).ticket

    def ahead_of(self, ticket_id: int) -> int:
        """How many in this line are served before the ticket; everybody, if it is not in it."""
        waiter = self._by_age.get(ticket_id)
        return sum(waiter is None or other.rank < waiter.rank for other in self._by_age.values())

    def has_client(self, client: str) -> bool:
        """Whether a ticket of `client` is in this line."""
        return client in self._clients

    def waiters(self) -> list[Waiter]:
        """Everybody, in the order of service."""
        return sorted(self._by_age.values(), key=lambda waiter: waiter.rank)
