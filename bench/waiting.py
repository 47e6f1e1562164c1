"""How the cost of an event grows with the number of requests queued for a model: `python -m bench waiting`.

One orchestrator in this process, a supervisor whose model never gets ready, and a queue of a given length, which requests
join and leave. The figures are CPU µs of this process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio
import msgspec

from bench.lease_hosts import Ready
from hostler.gateway.events import Bus
from hostler.supervisor.contract import EngineAddress, HostStatus, ProfileInfo
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings


class Cost(msgspec.Struct, kw_only=True):
    """The cost of one request's events, with `waiting` others queued."""

    waiting: int
    join_us: float
    leave_us: float
    progress_us: float


class Slow(Ready):
    """A supervisor whose engine is never ready."""

    async def status(self) -> HostStatus:
        return HostStatus(profiles=(ProfileInfo(name="a"),))

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        await anyio.sleep_forever()
        raise AssertionError

    async def locate(self, model: str) -> EngineAddress | None:
        return None


async def measure(waiting: int, events: int) -> Cost:
    """The cost of each of these events with this many requests queued."""
    bus = Bus()
    host = Orchestrator(
        "box",
        Slow(),
        settings=SchedulerSettings(max_waiting=waiting + events + 1, max_wait_s=3600),
        publish=bus.publish,
        on_status=lambda status: None,
        on_stopping=lambda address: None,
        clock=time.monotonic,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.run)
        await host.synced.wait()
        leases = [host.lease("a", client=f"client-{number % 7}", request_id=f"r{number}") for number in range(waiting)]
        await anyio.sleep(0.3)
        spent = {"join": 0.0, "leave": 0.0, "progress": 0.0}
        for number in range(events):
            began = time.process_time()
            lease = host.lease("a", client=f"client-{number % 7}", request_id=f"x{number}")
            await anyio.lowlevel.checkpoint()
            joined = time.process_time()
            lease.progress()
            shown = time.process_time()
            lease.release()
            await anyio.lowlevel.checkpoint()
            left = time.process_time()
            for name, seconds in (("join", joined - began), ("progress", shown - joined), ("leave", left - shown)):
                spent[name] += seconds
        for lease in leases:
            lease.release()
        tasks.cancel_scope.cancel()
    each = {f"{name}_us": seconds / events * 1e6 for name, seconds in spent.items()}
    return Cost(waiting=waiting, **each)


def waiting(lengths: Sequence[int] = (10, 100, 300, 1000, 3000), events: int = 300) -> list[Cost]:
    """A row for each length of the queue."""
    return [anyio.run(measure, length, events) for length in lengths]


def table(rows: list[Cost]) -> str:
    """A Markdown table."""
    lines = ["| queued | join, µs | leave, µs | show progress, µs |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.waiting} | {row.join_us:.0f} | {row.leave_us:.0f} | {row.progress_us:.0f} |" for row in rows]
    return "\n".join(lines)
