"""How a crowd that obeys `Retry-After` gets into a short queue: `python -m bench crowd`.

The scheduler alone, by a clock that jumps from event to event: many clients arrive at once at a model that serves a few at a
time, each comes back when it was asked to, and gives up only when it is served.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import msgspec

from hostler.supervisor.contract import HostStatus, ModelStatus, ProfileInfo
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import Decision, Grant, Refuse, SchedulerSettings


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a crowd: how often its members asked, and when. Times in seconds.

    `ideal_s` is the time in which the host could have served all of them.
    """

    clients: int
    places: int
    served: int
    median_tries: int
    most_tries: int
    longest_retry_after_s: float
    seconds: float
    ideal_s: float


class _Host:
    """A scheduler with one loaded model whose answers take `service_s`, more or less."""

    def __init__(self, places: int, parallel: int, service_s: float, seed: int) -> None:
        self.scheduler = Scheduler(SchedulerSettings(max_waiting=places, max_wait_s=3600.0))
        status = HostStatus(
            profiles=(ProfileInfo(name="a", parallel=parallel),),
            models=(ModelStatus(model="a", state="ready", since=0.0),),
        )
        self.scheduler.apply_snapshot(status, 0.0)
        self.service_s = service_s
        self.random = random.Random(seed)
        self.served: set[int] = set()
        self.tries: dict[int, int] = {}
        self.waits: list[float] = []
        self._events: list[tuple[float, int, str]] = []

    def at(self, when: float, client: int, event: str) -> None:
        heapq.heappush(self._events, (when, client, event))

    def run(self, names: int, longest_s: float) -> float:
        """Carry out the events, with the clients under so many names; returns the time of the last one."""
        now = 0.0
        while self._events and now < longest_s:
            now, client, event = heapq.heappop(self._events)
            if event == "done":
                self._note(self.scheduler.release(client, now), now)
                continue
            self.tries[client] = self.tries.get(client, 0) + 1
            ticket = Ticket(id=client, model="a", at=now, client=f"client-{client % names}")
            self._note(self.scheduler.request(ticket, now), now)
        return now

    def _note(self, decisions: Sequence[Decision], now: float) -> None:
        for decision in decisions:
            if isinstance(decision, Grant):
                self.served.add(decision.ticket)
                self.at(now + self.service_s * self.random.uniform(0.5, 1.5), decision.ticket, "done")
            elif isinstance(decision, Refuse):
                self.waits.append(decision.retry_after_s)
                self.at(now + decision.retry_after_s + self.random.uniform(0.001, 0.1), decision.ticket, "ask")


def measure(
    clients: int = 200,
    *,
    places: int = 10,
    parallel: int = 4,
    service_s: float = 1.0,
    names: int | None = None,
    seed: int = 1,
) -> Crowd:
    """One crowd. `names`: the number of names that its members have, all different ones unless given."""
    host = _Host(places, parallel, service_s, seed)
    for client in range(clients):
        host.at(host.random.uniform(0.0, 0.5), client, "ask")
    seconds = host.run(names or clients, 3600.0)
    tries = sorted(host.tries.values())
    return Crowd(
        clients=clients,
        places=places,
        served=len(host.served),
        median_tries=tries[len(tries) // 2],
        most_tries=tries[-1],
        longest_retry_after_s=max(host.waits, default=0.0),
        seconds=round(seconds, 1),
        ideal_s=round(clients * service_s / parallel, 1),
    )


def crowd() -> list[Crowd]:
    """Crowds of several sizes, of strangers and of one name."""
    return [
        measure(clients, service_s=service_s, names=names)
        for clients, service_s in ((50, 1.0), (200, 0.2), (200, 1.0), (1000, 1.0))
        for names in (None, 1)
    ]


def table(rows: list[Crowd]) -> str:
    """A Markdown table."""
    lines = [
        "| clients | places | served | tries, median | tries, most | longest `Retry-After`, s | all served after, s "
        "| at best, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.clients} | {row.places} | {row.served} | {row.median_tries} | {row.most_tries} "
        f"| {row.longest_retry_after_s:.0f} | {row.seconds:.0f} | {row.ideal_s:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)
