"""What a lease costs from a host of this process, and from one on another machine: `python -m bench leases`.

The hosts are those of `bench/lease_hosts.py`; this process is the gateway. Each client asks for a lease, uses it for
nothing, and releases it. The figures are the time until the grant, and CPU µs of both processes for one lease.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio
import msgspec

from bench.lease_hosts import own_host, remote_host, supervisor
from bench.processes import cpu_s
from hostler.supervisor.scheduling.host import Host

CLIENTS = (1, 8, 32)
SECONDS = 3.0


class LeaseCost(msgspec.Struct, kw_only=True):
    """What one lease costs with so many clients at once; `supervisor_us` is 0 within one process."""

    where: str
    clients: int
    median_ms: float
    p99_ms: float
    per_s: float
    gateway_us: float
    supervisor_us: float


async def measure(where: str, host: Host, clients: int, pid: int | None, seconds: float) -> LeaseCost:
    """Run this many clients for a while."""
    took: list[float] = []
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        while (began := time.perf_counter()) and time.monotonic() < end:
            lease = host.lease("a", client=f"client-{number}", request_id="r")
            if not lease.settled:
                await lease.wait(60)
            lease.address()
            took.append(time.perf_counter() - began)
            lease.release()
            await anyio.lowlevel.checkpoint()

    spent, theirs = time.process_time(), 0.0 if pid is None else cpu_s(pid)
    async with anyio.create_task_group() as tasks:
        for number in range(clients):
            tasks.start_soon(client, number)
    spent = time.process_time() - spent
    theirs = 0.0 if pid is None else cpu_s(pid) - theirs
    took.sort()
    return LeaseCost(
        where=where,
        clients=clients,
        median_ms=1e3 * took[len(took) // 2],
        p99_ms=1e3 * took[int(0.99 * len(took))],
        per_s=len(took) / seconds,
        gateway_us=1e6 * spent / len(took),
        supervisor_us=1e6 * theirs / len(took),
    )


async def local(seconds: float, clients: Sequence[int]) -> list[LeaseCost]:
    """Leases of this process's own host."""
    async with own_host() as host:
        return [await measure("local", host, number, None, seconds) for number in clients]


async def remote(seconds: float, clients: Sequence[int]) -> list[LeaseCost]:
    """Leases of a host behind a connection."""
    with supervisor() as (url, pid):
        async with remote_host(url) as host:
            return [await measure("remote", host, number, pid, seconds) for number in clients]


def leases(*, seconds: float = SECONDS, clients: Sequence[int] = CLIENTS) -> list[LeaseCost]:
    """A row for each place and number of clients."""
    options = {"use_uvloop": True}
    return [
        *anyio.run(local, seconds, clients, backend_options=options),
        *anyio.run(remote, seconds, clients, backend_options=options),
    ]


def table(rows: list[LeaseCost]) -> str:
    """A Markdown table."""
    lines = [
        "| host | clients | median, ms | p99, ms | leases/s | gateway, µs | supervisor, µs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.where} | {row.clients} | {row.median_ms:.3f} | {row.p99_ms:.2f} | {row.per_s:,.0f} "
        f"| {row.gateway_us:.0f} | {row.supervisor_us:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)
