"""What engines take, whether they are busy, and how long a switch waits for their responses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from fakes.flag_file import FlagFile
from fakes.managers import chat, phases, ready, states, until
from fakes.memory_meter import FakeMemoryMeter

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress, ModelChanged, Snapshot, SwitchMoved
from hostler.supervisor.engine_client import EngineActivity, engine_activity
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB, MIB, MemoryUsage
from hostler.supervisor.memory_meter import Measurement
from hostler.supervisor.model_files import FileDescription

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
EXCLUSIVE = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, drain_s=60)
SHARED = msgspec.structs.replace(EXCLUSIVE, memory_budget=Size(8 * GIB))


async def test_memory_includes_descendants(scripted: Scripted, running: Running, journal: Any) -> None:
    async with running(EngineManager([scripted("a"), scripted("b", grandchild=True)], SHARED)) as manager:
        await manager.switch("a")
        await manager.switch("b")

        def counted() -> bool:
            # The first reading may be from before the second process of b has any memory.
            single, two = (status.memory_bytes for status in manager.status_now().models)
            return 4 * MIB < single < 100 * MIB and two > single + 2 * MIB

        await until(manager, counted)
        await manager.unload("a")
        assert manager.status_now().models[0].memory_bytes == 0


async def test_gpu_memory_is_published_too(scripted: Scripted, running: Running, journal: Any) -> None:
    meter: Any = FakeMemoryMeter(MemoryUsage(rss=2 * GIB, gpu=5 * GIB))
    async with running(EngineManager([scripted("a")], SHARED, meter=meter)) as manager:
        await manager.switch("a")
        await until(manager, lambda: manager.status_now().models[0].gpu_bytes == 5 * GIB)


async def test_a_measurement_raises_an_estimate_and_lowers_it_after_a_response(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    estimated = FileDescription(facts=ModelFacts(bytes=2 * GIB))
    meter: Any = FakeMemoryMeter(MemoryUsage(rss=1 * GIB))
    async with running(EngineManager([scripted("a")], SHARED, meter=meter, describe=lambda _: estimated)) as manager:

        def need() -> int:
            return manager.status_now().profiles[0].memory_bytes

        address = await manager.switch("a")
        await until(manager, lambda: manager.status_now().models[0].memory_bytes == GIB)
        assert need() > 2 * GIB
        async with manager.events() as events:
            await anext(events)
            await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
            snapshot = await anext(event async for event in events if isinstance(event, Snapshot))
        # Not less than the weights: what an engine keeps on a GPU is not part of its resident memory.
        assert snapshot.host.profiles[0].memory_bytes == need() == 2 * GIB
        meter.usage = MemoryUsage(rss=6 * GIB)
        await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
        assert need() == 6 * GIB


async def test_an_unchanged_amount_is_not_published_again(scripted: Scripted, running: Running, journal: Any) -> None:
    meter: Any = FakeMemoryMeter(MemoryUsage(rss=1 * GIB))
    async with running(EngineManager([scripted("a")], SHARED, meter=meter)) as manager:
        address = await manager.switch("a")
        await until(manager, lambda: manager.status_now().models[0].memory_bytes == GIB)
        async with manager.events() as events:
            await anext(events)
            meter.usage = MemoryUsage(rss=GIB + 1)
            await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
            await manager.unload("a")
            changes = (event.status async for event in events if isinstance(event, ModelChanged))
            answered, unloading = await anext(changes), await anext(changes)
            assert (answered.state, answered.memory_bytes) == ("ready", GIB)
            assert unloading.state == "stopping"


async def test_a_failing_driver_does_not_end_the_host(scripted: Scripted, running: Running, journal: Any) -> None:
    class Broken(FakeMemoryMeter):
        def measure(self, pids: Collection[int]) -> Measurement:
            raise RuntimeError("the driver has left")

    meter: Any = Broken(MemoryUsage())
    async with running(EngineManager([scripted("a")], SHARED, meter=meter)) as manager:
        address = await manager.switch("a")
        await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
        assert states(manager) == {"a": "ready"}


async def test_a_hanging_driver_holds_up_neither_a_switch_nor_the_end_of_the_host(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    hanging, calls = threading.Event(), []

    class Hanging(FakeMemoryMeter):
        def measure(self, pids: Collection[int]) -> Measurement:
            calls.append(pids)
            hanging.wait(60)
            return super().measure(pids)

    meter: Any = Hanging(MemoryUsage())
    try:
        with anyio.fail_after(30):
            async with running(EngineManager([scripted("a"), scripted("b")], EXCLUSIVE, meter=meter)) as manager:
                await manager.switch("a")
                await manager.switch("b")
                assert states(manager) == {"a": "stopped", "b": "ready"}
        assert len(calls) == 1
    finally:
        hanging.set()


Flags = Callable[[str], FlagFile]


async def cut_off(address: EngineAddress) -> None:
    """A request whose response is cut off."""
    with pytest.raises(httpx.TransportError):
        await chat(address)


async def test_an_exclusive_host_drains_the_old_model_and_publishes_it(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    last = flags("last")
    answers: list[str] = []
    async with (
        running(EngineManager([scripted("a", last_when=last.path), scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        address = await manager.switch("a")

        async def ask() -> None:
            answers.append(await chat(address))

        def let_it_finish(event: SwitchMoved) -> None:
            if event.phase == "draining":
                # Meanwhile it serves.
                assert (event.from_models, ready(manager)) == (("a",), ["a"])
                last.set()

        tasks.start_soon(ask)
        await journal.until("request")
        received = await phases(manager, "b", let_it_finish)
        assert received == ["draining", "saving", "stopping", "starting", "loading", "restoring", "ready"]
        assert manager.status_now().models[1].phase_seconds["draining"] > 0
    assert "word4" in answers[0]


async def test_a_model_whose_profile_was_changed_finishes_its_answer(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    last = flags("last")
    answers: list[str] = []
    async with running(EngineManager([scripted("a", last_when=last.path)], EXCLUSIVE)) as manager:
        address = await manager.switch("a")

        async def ask() -> None:
            answers.append(await chat(address))

        async def finish() -> None:
            # It is polled whether it is busy before it is stopped.
            await journal.until("request", 2)
            last.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await journal.until("request")
            tasks.start_soon(finish)
            await manager.replace_profiles([scripted("a", profile={"context": 512})])
            assert manager.status_now().models[0].state == "stopped"
    assert "word4" in answers[0]


async def test_what_the_gateway_has_drained_is_not_waited_for(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    async with (
        running(EngineManager([scripted("a", last_when=flags("never").path), scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(cut_off, await manager.switch("a"))
        await journal.until("request")
        await manager.switch("b", evict=["a"])
        # It is not even polled, which would take time.
        assert not [event for event in journal.events("request", "a") if event["path"] == "/metrics"]


async def test_draining_is_limited_in_time(scripted: Scripted, running: Running, journal: Any, flags: Flags) -> None:
    profile = scripted("a", last_when=flags("never").path, profile={"drain_s": 0.2})
    async with (
        running(EngineManager([profile, scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(cut_off, await manager.switch("a"))
        await journal.until("request")
        # Else draining would take for ever.
        with anyio.fail_after(30):
            await manager.switch("b")


async def test_draining_ends_with_the_engine(scripted: Scripted, running: Running, journal: Any, flags: Flags) -> None:
    async with (
        running(EngineManager([scripted("a", last_when=flags("never").path), scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(cut_off, await manager.switch("a"))
        await journal.until("request")
        with anyio.fail_after(30):
            await phases(
                manager, "b", lambda event: event.phase == "draining" and tasks.start_soon(manager.unload, "a")
            )


async def test_an_engine_without_metrics_is_not_drained() -> None:
    nowhere = EngineAddress(model="a", host="127.0.0.1", port=1, key="", generation=1, context=1, parallel=1)
    assert await engine_activity(nowhere) is None


async def test_an_engine_that_does_not_answer_in_time_counts_as_busy() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as silent:
        port = silent.extra(anyio.abc.SocketAttribute.local_port)
        address = EngineAddress(model="a", host="127.0.0.1", port=port, key="", generation=1, context=1, parallel=1)
        assert await engine_activity(address, timeout_s=0.1) == EngineActivity(requests=1)


@pytest.mark.engine
@pytest.mark.timeout(180)
async def test_the_real_engine_reports_whether_it_is_busy(real_model: Path, running: Running, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    profile = Profile(name="a", model=str(real_model), engine="embedded", context=2048, threads=1)
    async with running(EngineManager([profile], EXCLUSIVE)) as manager:
        address = await manager.switch("a")
        assert await engine_activity(address, timeout_s=10) == EngineActivity(requests=0, work_done=0)
        received: list[EngineActivity | None] = []
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                await chat(address)
                tasks.cancel_scope.cancel()

            tasks.start_soon(ask)
            while True:
                received.append(await engine_activity(address, timeout_s=10))
                await anyio.sleep(0.02)
        after = await engine_activity(address, timeout_s=10)
        assert any(each is not None and each.requests == 1 for each in received)
        assert after is not None
        assert (after.requests, after.work_done > 16) == (0, True)
