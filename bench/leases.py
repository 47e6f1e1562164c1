"""What a lease costs from a host of this process, and from one on another machine: `python -m bench leases`.

A supervisor without engines, whose one model is always ready, runs in a process of its own behind its real HTTP server;
this process is the gateway. Each client asks for a lease, uses it for nothing, and releases it. The figures are the time
until the grant, and CPU µs of both processes for one lease.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import msgspec

from bench.processes import ROOT, cpu_s
from hostler.gateway.server.server import Server, bind
from hostler.supervisor.api import create_app
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.contract import EngineAddress, HostStatus, ModelStatus, ProfileInfo, Snapshot, SupervisorEvent
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.remote_host import RemoteHost
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings

CLIENTS = (1, 8, 32)
SECONDS = 3.0
#: More than there are leases at a time, so that none waits for another one.
SLOTS = 4096

ADDRESS = EngineAddress(
    model="a", host="127.0.0.1", port=8123, key="k" * 43, generation=1, context=8192, parallel=SLOTS
)


class LeaseCost(msgspec.Struct, kw_only=True):
    """What one lease costs with so many clients at once; `supervisor_us` is 0 within one process."""

    where: str
    clients: int
    median_ms: float
    p99_ms: float
    per_s: float
    gateway_us: float
    supervisor_us: float


class Ready:
    """A supervisor whose one model is always ready."""

    async def status(self) -> HostStatus:
        models = (ModelStatus(model="a", state="ready", since=0.0, generation=1),)
        return HostStatus(profiles=(ProfileInfo(name="a", parallel=SLOTS),), models=models)

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        return ADDRESS

    async def unload(self, model: str) -> None: ...

    async def locate(self, model: str) -> EngineAddress | None:
        return ADDRESS

    async def active_requests(self, model: str, generation: int) -> int | None:
        return 0

    async def report_first_response(self, model: str, *, generation: int, cached: int, prompt: int) -> None: ...

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[SupervisorEvent]]:
        async def only_a_snapshot() -> AsyncIterator[SupervisorEvent]:
            yield Snapshot(host=await self.status())
            await anyio.sleep_forever()

        yield only_a_snapshot()


async def serve() -> None:
    """The supervisor; its port is the first line of its output."""
    supervisor = Ready()
    leases = LeaseServer(supervisor)
    sockets = bind([("127.0.0.1", 0)], "")
    server = Server(create_app(supervisor, leases, token="t"), drain_s=0.1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leases.run)
        print(sockets[0].getsockname()[1], flush=True)
        await server.serve(sockets)


@contextmanager
def supervisor() -> Iterator[tuple[str, int]]:
    """A supervisor's URL and its pid."""
    command = [sys.executable, "-m", "bench.leases"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process.pid
        finally:
            process.kill()


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
    nothing: Any = lambda value: None  # noqa: E731 - three callbacks that do nothing
    host = Orchestrator(
        "local", Ready(), settings=SchedulerSettings(), publish=nothing, on_status=nothing, on_stopping=nothing,
        clock=time.monotonic,
    )  # fmt: skip
    return await _rows("local", host, None, seconds, clients)


async def remote(seconds: float, clients: Sequence[int]) -> list[LeaseCost]:
    """Leases of a host behind a connection."""
    nothing: Any = lambda value: None  # noqa: E731 - three callbacks that do nothing
    with supervisor() as (url, pid):
        async with SupervisorClient(url, "t") as client:
            host = RemoteHost(
                "pc", url, "t", client=client, limits=SchedulerSettings(), publish=nothing,
                on_status=nothing, on_stopping=nothing, clock=time.monotonic,
            )  # fmt: skip
            return await _rows("remote", host, pid, seconds, clients)


async def _rows(where: str, host: Host, pid: int | None, seconds: float, clients: Sequence[int]) -> list[LeaseCost]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.run)
        await host.synced.wait()
        rows = [await measure(where, host, number, pid, seconds) for number in clients]
        tasks.cancel_scope.cancel()
    return rows


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


if __name__ == "__main__":
    anyio.run(serve, backend_options={"use_uvloop": True})
