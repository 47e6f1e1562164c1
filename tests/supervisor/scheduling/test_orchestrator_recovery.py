"""The orchestrator with a scripted supervisor that disconnects, reconnects and sends late events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from hostler.adapters.errors import BackendUnavailable, GatewayError, ModelUnavailable
from hostler.gateway.events import Event, QueueChanged
from hostler.supervisor.contract import (
    EngineAddress,
    HostStatus,
    ModelChanged,
    ModelStatus,
    ProfileInfo,
    Snapshot,
    State,
    SupervisorEvent,
    SupervisorUnreachable,
    SwitchMoved,
    UnknownProfile,
)
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings

pytestmark = pytest.mark.anyio


def snapshot(**models: tuple[State, int]) -> Snapshot:
    """A host with the profiles `a` and `b`; each given model in its state and generation."""
    statuses = tuple(
        ModelStatus(model=model, state=state, since=0.0, generation=generation)
        for model, (state, generation) in models.items()
    )
    return Snapshot(host=HostStatus(profiles=(ProfileInfo(name="a"), ProfileInfo(name="b")), models=statuses))


class Scripted:
    """A supervisor: `says` goes to its listener, `loads` says how a switch ends, `runs` where models are."""

    def __init__(self) -> None:
        self._says, self._heard = anyio.create_memory_object_stream[SupervisorEvent](100)
        self.subscriptions = 0
        self.unloaded: list[str] = []
        self.loads: dict[str, int | Exception] = {}
        self.runs: dict[str, int] = {}
        self.sought, self.located = anyio.Event(), anyio.Event()
        self.located.set()

    def send(self, event: SupervisorEvent) -> None:
        self._says.send_nowait(event)

    def close(self) -> None:
        self._says.close()
        self._heard.close()

    async def status(self) -> HostStatus:
        raise NotImplementedError

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        await anyio.lowlevel.checkpoint()
        result = self.loads[model]
        if isinstance(result, Exception):
            raise result
        self.runs[model] = result
        return address(model, result)

    async def unload(self, model: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.runs.pop(model, None)
        self.unloaded.append(model)

    async def locate(self, model: str) -> EngineAddress | None:
        self.sought.set()
        await self.located.wait()
        await anyio.lowlevel.checkpoint()
        return address(model, self.runs[model]) if model in self.runs else None

    async def active_requests(self, model: str, generation: int) -> int | None:
        return 0

    async def report_first_response(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[SupervisorEvent]]:
        self.subscriptions += 1
        yield self._heard


def address(model: str, generation: int) -> EngineAddress:
    return EngineAddress(
        model=model, host="127.0.0.1", port=1000 + generation, key="k", generation=generation, context=1, parallel=1
    )


class Orchestrated:
    """A running orchestrator, its supervisor, and what it published."""

    def __init__(self, host: Orchestrator, supervisor: Scripted, published: list[Event]) -> None:
        self.host = host
        self.supervisor = supervisor
        self.published = published

    async def until_handled(self) -> None:
        """Wait until all events sent so far are handled."""
        await anyio.wait_all_tasks_blocked()

    async def refusal(self, model: str) -> GatewayError:
        """The error of a refused lease."""
        lease = self.host.lease(model)
        try:
            assert await lease.wait(20)
            with pytest.raises(GatewayError) as refused:
                lease.address()
            return refused.value
        finally:
            lease.release()

    async def lease(self, model: str) -> Lease:
        lease = self.host.lease(model)
        assert await lease.wait(20)
        lease.address()
        return lease


@asynccontextmanager
async def opened(first: Snapshot) -> AsyncIterator[Orchestrated]:
    supervisor, published = Scripted(), list[Event]()
    host = Orchestrator(
        "pc", supervisor, settings=SchedulerSettings(), publish=published.append,
        on_status=lambda _: None, on_stopping=lambda _: None, clock=anyio.current_time,
    )  # fmt: skip
    supervisor.send(first)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.run)
        await host.synced.wait()
        yield Orchestrated(host, supervisor, published)
        tasks.cancel_scope.cancel()
    supervisor.close()


async def test_a_snapshot_older_than_the_end_of_a_load_changes_nothing() -> None:
    async with opened(snapshot()) as subject:
        subject.supervisor.loads["a"] = 3
        lease = await subject.lease("a")
        subject.supervisor.send(snapshot(a=("starting", 3)))
        await subject.until_handled()
        lease.release()
        again = subject.host.lease("a")
        assert again.granted
        assert again.address() == address("a", 3)
        again.release()


async def test_after_a_reconnect_the_same_generation_is_another_process() -> None:
    async with opened(snapshot()) as subject:
        subject.supervisor.loads["a"] = 1
        (await subject.lease("a")).release()
        subject.host.set_reachable(False)
        subject.supervisor.runs["a"] = 1
        subject.supervisor.send(snapshot(a=("ready", 1)))
        with anyio.fail_after(20):
            while not subject.host.reachable:  # noqa: ASYNC110 - the orchestrator pauses before it asks again
                await anyio.sleep(0.01)
        assert subject.supervisor.subscriptions == 2
        lease = subject.host.lease("a")
        assert lease.granted
        lease.release()


async def test_a_model_that_cannot_be_located_counts_as_stopped() -> None:
    async with opened(snapshot(a=("ready", 1))) as subject:
        subject.supervisor.loads["a"] = 2
        lease = subject.host.lease("a")
        assert not lease.settled
        assert await lease.wait(20)
        assert lease.address() == address("a", 2)
        lease.release()


async def test_a_late_event_of_an_old_process_does_not_affect_the_new_one() -> None:
    async with opened(snapshot()) as subject:
        subject.supervisor.loads["a"] = 2
        (await subject.lease("a")).release()
        subject.supervisor.send(ModelChanged(status=ModelStatus(model="a", state="stopped", since=0.0, generation=1)))
        await subject.until_handled()
        lease = subject.host.lease("a")
        assert lease.granted
        lease.release()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SupervisorUnreachable("gone"), BackendUnavailable, "does not respond"),
        (UnknownProfile("a"), ModelUnavailable, "no longer has a profile"),
        (RuntimeError("boom"), ModelUnavailable, "could not be loaded"),
    ],
)
async def test_a_refused_order_has_an_error_of_its_own(error: Exception, kind: type[GatewayError], words: str) -> None:
    async with opened(snapshot()) as subject:
        subject.supervisor.loads["a"] = error
        refused = await subject.refusal("a")
        assert isinstance(refused, kind)
        assert words in refused.message


async def test_a_forced_unload_revokes_leases_and_waits_for_the_process() -> None:
    async with opened(snapshot()) as subject:
        subject.supervisor.loads["a"] = 1
        lease = await subject.lease("a")
        await subject.host.unload("a", force=True)
        assert subject.supervisor.unloaded == ["a"]
        assert lease.revoked == "unloaded"
        lease.release()
        subject.supervisor.loads["a"] = 2
        fresh = await subject.lease("a")
        assert fresh.address().generation == 2
        assert fresh.revoked is None
        fresh.release()


async def test_a_switch_whose_end_was_missed_is_over_with_the_snapshot_that_shows_its_model() -> None:
    async with opened(snapshot()) as subject:
        for model in ("a", "b"):
            subject.supervisor.send(SwitchMoved(id=model, model=model, phase="loading"))
        await subject.until_handled()
        subject.supervisor.runs["a"] = 1
        subject.supervisor.send(snapshot(a=("ready", 1), b=("starting", 1)))
        await subject.until_handled()
        assert [switch.model for switch in subject.host.switches()] == ["b"]


async def test_the_queue_is_published_when_it_fills_and_empties() -> None:
    async with opened(snapshot()) as subject:
        subject.supervisor.loads["a"] = 1
        running = await subject.lease("a")
        before = len(subject.published)
        waiting = subject.host.lease("a", client="me", request_id="req-1")
        running.release()
        assert waiting.granted
        queues = [event for event in subject.published[before:] if isinstance(event, QueueChanged)]
        assert [[(each.id, each.client, each.position) for each in event.waiting] for event in queues] == [
            [("req-1", "me", 1)],
            [],
        ]
        waiting.release()


@pytest.mark.parametrize("runs", [{"a": 1}, {"a": 2}, {}])
async def test_a_request_during_reconciliation_is_answered(runs: dict[str, int]) -> None:
    async with opened(snapshot()) as subject:
        supervisor = subject.supervisor
        supervisor.loads = {"a": 1}
        (await subject.lease("a")).release()
        subject.host.set_reachable(False)
        supervisor.runs, supervisor.sought, supervisor.located = dict(runs), anyio.Event(), anyio.Event()
        supervisor.loads = {"a": 3}
        supervisor.send(snapshot(a=("ready", 1), b=("ready", 1)))
        with anyio.fail_after(20):
            await supervisor.sought.wait()
        early = subject.host.lease("a")
        supervisor.located.set()
        assert await early.wait(20)
        early.release()
        with anyio.fail_after(20):
            while not subject.host.reachable:  # noqa: ASYNC110 - the orchestrator pauses before it asks again
                await anyio.sleep(0.01)
        lease = await subject.lease("a")
        assert lease.address().generation == runs.get("a", 3)
        lease.release()


async def test_an_engine_that_only_times_out_is_stopped() -> None:
    async with opened(snapshot()) as one:
        one.supervisor.loads["a"] = 1
        for _ in range(3):
            lease = await one.lease("a")
            lease.report_timeout()
            lease.release()
        await one.until_handled()
        assert one.supervisor.unloaded == ["a"]


async def test_an_answer_between_timeouts_shows_that_an_engine_works() -> None:
    async with opened(snapshot()) as one:
        one.supervisor.loads["a"] = 1
        for _ in range(2):
            for _ in range(2):
                lease = await one.lease("a")
                lease.report_timeout()
                lease.release()
            lease = await one.lease("a")
            lease.report_answer(None)
            lease.release()
        await one.until_handled()
        assert not one.supervisor.unloaded
