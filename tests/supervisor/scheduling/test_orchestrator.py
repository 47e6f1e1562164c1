"""The orchestrator with a scripted supervisor: orders and long queues."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from hostler.adapters.errors import ModelUnavailable
from hostler.gateway.events import Event, QueueChanged
from hostler.supervisor.contract import (
    EngineAddress,
    HostStatus,
    ModelLease,
    ProfileInfo,
    PromptIdentity,
    Snapshot,
    SupervisorEvent,
)
from hostler.supervisor.scheduling.lease import Lease
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


class Assignment:
    """A slot whose conversation has to be moved first, unless `prepared`."""

    def __init__(self, slot: int, prepared: bool) -> None:
        self.slot = slot
        self.prepared = prepared
        self.began, self.may_end = anyio.Event(), anyio.Event()
        self.released = 0

    async def prepare(self) -> None:
        self.began.set()
        await self.may_end.wait()
        self.prepared = True

    def release(self) -> None:
        self.released += 1


class WithSlots(Scripted):
    """A supervisor that gives this slot to every request."""

    def __init__(self, assignment: Assignment | None) -> None:
        super().__init__(address(1))
        self.assignment = assignment
        self.assigned: list[tuple[str, int, PromptIdentity]] = []

    def assign_slot(self, model: str, generation: int, prompt: PromptIdentity) -> Assignment | None:
        self.assigned.append((model, generation, prompt))
        return self.assignment


PROMPT = PromptIdentity("chat", ((1, 10),))


async def granted(host: Orchestrator, prompt: PromptIdentity | None = PROMPT) -> Lease:
    lease = host.lease("a", prompt=prompt)
    with anyio.fail_after(20):
        while not await lease.wait(1):
            pass
    return lease


async def test_a_lease_has_the_slot_of_its_conversation() -> None:
    supervisor = WithSlots(Assignment(3, prepared=True))
    async with orchestrating(supervisor) as host:
        lease = await granted(host)
        assert (lease.slot, supervisor.assigned) == (3, [("a", 1, PROMPT)])
        lease.release()
        lease.release()
        assert supervisor.assignment is not None
        assert supervisor.assignment.released == 1
        # The model is ready: granted at once.
        assert host.lease("a", prompt=PROMPT).settled


async def test_the_engine_chooses_for_requests_without_a_conversation_and_when_no_slot_is_free() -> None:
    supervisor = WithSlots(None)
    async with orchestrating(supervisor) as host:
        lease = await granted(host, None)
        assert (lease.slot, supervisor.assigned) == (None, [])
        lease.release()
        assert (await granted(host)).slot is None


async def test_a_lease_waits_until_its_conversation_was_moved() -> None:
    assignment = Assignment(3, prepared=False)
    async with orchestrating(WithSlots(assignment)) as host:
        lease = host.lease("a", prompt=PROMPT)
        with anyio.fail_after(20):
            await assignment.began.wait()
            assert not lease.settled
            host.stop(lambda: ModelUnavailable("the gateway stops"))  # which refuses only what is queued
            assignment.may_end.set()
            while not await lease.wait(1):
                pass
        assert lease.granted
        lease.release()
        assert assignment.released == 1


async def test_a_request_that_leaves_while_its_conversation_is_moved_frees_the_slot() -> None:
    assignment = Assignment(3, prepared=False)
    async with orchestrating(WithSlots(assignment)) as host:
        lease = host.lease("a", prompt=PROMPT)
        with anyio.fail_after(20):
            await assignment.began.wait()
        lease.release()
        assert (assignment.released, host.serving) == (1, 0)
        assignment.prepared = True
        assert (await granted(host)).granted
        assert not lease.granted


class Leasing(Scripted):
    """Leases its model; while it does, `meanwhile` happens."""

    def __init__(self) -> None:
        super().__init__(address(1))
        self.leases: dict[str, ModelLease] = {}
        self.meanwhile: Callable[[], None] = lambda: None

    async def add_lease(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        lease = self.leases["1"] = ModelLease(id="1", model=model, holder=holder, created_at=0.0, expires_at=seconds)
        self.meanwhile()
        await anyio.lowlevel.checkpoint()
        return lease

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        await anyio.lowlevel.checkpoint()
        return self.leases.pop(lease_id, None)


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_client_that_leaves_while_its_lease_is_taken_has_none(loaded: bool) -> None:
    supervisor = Leasing()
    async with orchestrating(supervisor) as host:
        if loaded:
            await leased(host)
        with anyio.CancelScope() as scope:
            supervisor.meanwhile = scope.cancel
            await host.lease_model("a", holder="ann", seconds=60)
        assert scope.cancelled_caught
        assert supervisor.leases == {}
        assert host.model_leases == ()
        supervisor.meanwhile = lambda: None
        assert (await host.lease_model("a", holder="ann", seconds=60)).id == "1"


class FailsToUnload(Scripted):
    async def unload(self, model: str) -> None:
        raise RuntimeError("a mistake of its own")


async def test_an_unload_that_fails_in_any_way_leaves_the_host_serving(caplog: pytest.LogCaptureFixture) -> None:
    async with orchestrating(FailsToUnload(address(1))) as host:
        await leased(host)
        with anyio.fail_after(20):
            await host.unload("a", force=True)
        assert await leased(host) == address(1)
    assert "pc: unloading a failed" in caplog.text
