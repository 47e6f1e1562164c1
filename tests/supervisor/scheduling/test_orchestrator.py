"""The orchestrator with a scripted supervisor: orders and long queues."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from hostler.gateway.events import Event, QueueChanged
from hostler.supervisor.contract import EngineAddress, HostStatus, ProfileInfo, Snapshot, SupervisorEvent
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings

pytestmark = pytest.mark.anyio


def address(generation: int) -> EngineAddress:
    return EngineAddress(
        model="a", host="127.0.0.1", port=1, key=f"key{generation}", generation=generation, context=1, parallel=1
    )


class Scripted:
    """Answers `switch` with one address after the other, the last one for ever."""

    def __init__(self, *answers: EngineAddress) -> None:
        self._answers = list(answers)
        self.unloaded = 0

    async def status(self) -> HostStatus:
        return HostStatus(profiles=(ProfileInfo(name="a"),))

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    async def unload(self, model: str) -> None:
        self.unloaded += 1
        self._answers = [address(9)]

    async def locate(self, model: str) -> EngineAddress | None:
        return None

    async def active_requests(self, model: str, generation: int) -> int | None:
        return 0

    async def report_first_response(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        pass

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[SupervisorEvent]]:
        async def only_a_snapshot() -> AsyncIterator[SupervisorEvent]:
            yield Snapshot(host=await self.status())
            await anyio.sleep_forever()

        yield only_a_snapshot()


@asynccontextmanager
async def orchestrating(
    supervisor: Scripted, publish: Callable[[Event], None] = lambda event: None, max_waiting: int = 10
) -> AsyncIterator[Orchestrator]:
    host = Orchestrator(
        "pc",
        supervisor,
        settings=SchedulerSettings(max_waiting=max_waiting),
        publish=publish,
        on_status=lambda status: None,
        on_stopping=lambda address: None,
        clock=time.monotonic,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.run)
        await host.synced.wait()
        yield host
        tasks.cancel_scope.cancel()


async def leased(host: Orchestrator) -> EngineAddress:
    lease = host.lease("a")
    assert await lease.wait(20)
    lease.release()
    return lease.address()


async def test_orders_again_until_the_supervisor_notices_a_dead_engine() -> None:
    supervisor = Scripted(address(1), address(1), address(1), address(2))
    async with orchestrating(supervisor) as host:
        host.engine_lost(await leased(host))
        assert await leased(host) == address(2)
    assert supervisor.unloaded == 0


async def test_unloads_an_engine_that_runs_but_accepts_no_connections() -> None:
    supervisor = Scripted(address(1))
    async with orchestrating(supervisor) as host:
        host.engine_lost(await leased(host))
        assert await leased(host) == address(9)
    assert supervisor.unloaded == 1


class NeverReady(Scripted):
    """Its engine loads for ever."""

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_long_queue_is_not_published_with_every_request() -> None:
    published: list[QueueChanged] = []
    complete = anyio.Event()

    def note(event: Event) -> None:
        if isinstance(event, QueueChanged):
            published.append(event)
            if len(event.waiting) == 300:
                complete.set()

    async with orchestrating(NeverReady(address(1)), note, max_waiting=300) as host:
        leases = [host.lease("a", request_id=f"r{number}") for number in range(300)]
        assert len(published) < 100
        assert leases[299].progress().position == 300
        with anyio.fail_after(20):
            await complete.wait()
        assert [(each.id, each.position) for each in published[-1].waiting] == [(f"r{n}", n + 1) for n in range(300)]
        assert [lease.progress().position for lease in leases[::100]] == [1, 101, 201]
        for lease in leases:
            lease.release()
