"""The hosts of lease benchmarks: one of this process, and one behind a connection.

Both have a supervisor without engines, whose one model is always ready. That of the remote one runs in a process of its
own behind its real HTTP server.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio

from bench.processes import ROOT
from hostler.gateway.server.server import Server, bind
from hostler.supervisor.api import create_app
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.contract import EngineAddress, HostStatus, ModelStatus, ProfileInfo, Snapshot, SupervisorEvent
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.remote_host import RemoteHost
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings

#: More than there are leases at a time, so that none waits for another one.
SLOTS = 4096

ADDRESS = EngineAddress(
    model="a", host="127.0.0.1", port=8123, key="k" * 43, generation=1, context=8192, parallel=SLOTS
)


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
    command = [sys.executable, "-m", "bench.lease_hosts"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process.pid
        finally:
            process.kill()


@asynccontextmanager
async def own_host() -> AsyncIterator[Orchestrator]:
    """A host of this process."""
    host = Orchestrator(
        "local", Ready(), settings=SchedulerSettings(), publish=_nothing, on_status=_nothing, on_stopping=_nothing,
        clock=time.monotonic,
    )  # fmt: skip
    async with _running(host):
        yield host


@asynccontextmanager
async def remote_host(url: str) -> AsyncIterator[RemoteHost]:
    """A host behind a connection to the supervisor at `url`."""
    async with SupervisorClient(url, "t") as client:
        host = RemoteHost(
            "pc", url, "t", client=client, limits=SchedulerSettings(), publish=_nothing, on_status=_nothing,
            on_stopping=_nothing, clock=time.monotonic,
        )  # fmt: skip
        async with _running(host):
            yield host


@asynccontextmanager
async def _running(host: Host) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.run)
        await host.synced.wait()
        yield
        tasks.cancel_scope.cancel()


def _nothing(_: object) -> None: ...


if __name__ == "__main__":
    anyio.run(serve, backend_options={"use_uvloop": True})
