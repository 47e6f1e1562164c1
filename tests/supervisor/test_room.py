"""Which models live side by side: the rule, what engines were seen to take, and models that start by themselves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.meter import PretendedMeter
from system.house import house_in

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import ModelChanged, Snapshot, SupervisorError
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB, MIB, MemoryUsage
from hostler.supervisor.model_files import FileDescription

pytestmark = pytest.mark.anyio

Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]

SHARED = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, memory_budget=Size(8 * GIB))


def states(manager: EngineManager) -> dict[str, str]:
    return {status.model: status.state for status in manager.status_now().models}


async def until_told(manager: EngineManager, condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds after one of the fleet's events."""
    with anyio.fail_after(10):
        async with manager.events() as events:
            async for _ in events:
                if condition():
                    return


async def test_what_an_engine_takes_is_shown_with_its_descendants(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a"), scripted("b", grandchild=True)], SHARED)) as manager:
        await manager.switch("a")
        await manager.switch("b")
        await until_told(manager, lambda: all(status.memory_bytes for status in manager.status_now().models))
        alone, two = (status.memory_bytes for status in manager.status_now().models)
        assert 4 * MIB < alone < 100 * MIB
        assert two > alone + 2 * MIB
        await manager.unload("a")
        assert manager.status_now().models[0].memory_bytes == 0


async def test_memory_of_a_gpu_is_told_too(scripted: Scripted, running: Running, journal: Any) -> None:
    meter: Any = PretendedMeter(MemoryUsage(rss=2 * GIB, gpu=5 * GIB))
    async with running(EngineManager([scripted("a")], SHARED, meter=meter)) as manager:
        await manager.switch("a")
        await until_told(manager, lambda: manager.status_now().models[0].gpu_bytes == 5 * GIB)


async def test_an_estimate_is_raised_by_what_was_seen_and_lowered_after_an_answer(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    estimated = FileDescription(facts=ModelFacts(bytes=2 * GIB))
    meter: Any = PretendedMeter(MemoryUsage(rss=1 * GIB))
    async with running(EngineManager([scripted("a")], SHARED, meter=meter, describe=lambda _: estimated)) as manager:

        def need() -> int:
            return manager.status_now().profiles[0].memory_bytes

        address = await manager.switch("a")
        await until_told(manager, lambda: manager.status_now().models[0].memory_bytes == GIB)
        assert need() > 2 * GIB
        async with manager.events() as events:
            await anext(events)
            await manager.answered("a", generation=address.generation, cached=0, prompt=5)
            snapshot = await anext(event async for event in events if isinstance(event, Snapshot))
        assert snapshot.host.profiles[0].memory_bytes == need() == GIB
        meter.usage = MemoryUsage(rss=6 * GIB)
        await manager.answered("a", generation=address.generation, cached=0, prompt=5)
        assert need() == 6 * GIB


async def test_what_was_seen_decides_who_has_to_go(scripted: Scripted, running: Running, journal: Any) -> None:
    meter: Any = PretendedMeter(MemoryUsage(rss=5 * GIB))
    async with running(EngineManager([scripted("a"), scripted("b")], SHARED, meter=meter)) as manager:
        await manager.switch("a")
        await until_told(manager, lambda: manager.status_now().profiles[0].memory_bytes == 5 * GIB)
        await manager.switch("b")
        assert states(manager) == {"a": "ready", "b": "ready"}
        await until_told(manager, lambda: manager.status_now().profiles[1].memory_bytes == 5 * GIB)
        await manager.unload("b")
        await manager.switch("b")
        assert states(manager) == {"a": "stopped", "b": "ready"}


async def test_a_model_that_can_never_fit_is_refused_with_the_sum_and_costs_nobody(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    huge = FileDescription(facts=ModelFacts(architecture="llama", bytes=9 * GIB, kv_bytes_per_token=1024 * 1024))
    manager = EngineManager(
        [scripted("a"), scripted("huge")], SHARED,
        describe=lambda profile: huge if profile.name == "huge" else FileDescription(),
    )  # fmt: skip
    async with running(manager):
        await manager.switch("a")
        with pytest.raises(SupervisorError) as raised:
            await manager.switch("huge", evict=["a"])
        failure = raised.value.failure
        assert failure.kind == "does_not_fit"
        assert "huge needs 13.3 GiB (9.0 weights + 4.0 cache + 0.3 other); the budget is 8.0 GiB" in failure.message
        assert states(manager) == {"a": "ready", "huge": "stopped"}


async def test_pinned_models_are_named_when_they_leave_too_little(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    sizes = {"p": 5, "a": 4}
    profiles = [scripted(name, profile={"memory": size * GIB, "pinned": name == "p"}) for name, size in sizes.items()]
    async with running(EngineManager(profiles, SHARED)) as manager:
        await until_told(manager, lambda: states(manager)["p"] == "ready")
        with pytest.raises(SupervisorError, match=r"does not fit into 8\.0 GiB beside pinned p"):
            await manager.switch("a")
        assert states(manager)["p"] == "ready"


async def test_pinned_models_start_by_themselves_and_come_back(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    exclusive = SupervisorSettings(backoff_s=0.05)
    profiles = [scripted("p", profile={"pinned": True}), scripted("q"), scripted("a")]
    async with running(EngineManager(profiles, exclusive)) as manager:
        await until_told(manager, lambda: states(manager)["p"] == "ready")
        await manager.switch("a")
        pinned = [profiles[0], scripted("q", profile={"pinned": True}), profiles[2]]
        await manager.replace_profiles(pinned)
        await until_told(manager, lambda: states(manager)["q"] == "ready")
        assert states(manager) == {"p": "ready", "q": "ready", "a": "ready"}
        assert [event["model"] for event in journal.events("start")] == ["p", "a", "q"]


async def test_a_pinned_model_that_cannot_start_is_a_warning(
    scripted: Scripted, running: Running, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    profile = scripted("p", profile={"pinned": True}, exit_code=3)
    async with running(EngineManager([profile, scripted("a")], SupervisorSettings(max_failures=1))) as manager:
        await until_told(manager, lambda: states(manager)["p"] == "failed")
        assert (await manager.switch("a")).model == "a"
    assert "p: pinned, but cannot be started" in caplog.text


async def test_an_unchanged_amount_is_not_told_again(scripted: Scripted, running: Running, journal: Any) -> None:
    meter: Any = PretendedMeter(MemoryUsage(rss=1 * GIB))
    async with running(EngineManager([scripted("a")], SHARED, meter=meter)) as manager:
        address = await manager.switch("a")
        await until_told(manager, lambda: manager.status_now().models[0].memory_bytes == GIB)
        async with manager.events() as events:
            await anext(events)
            meter.usage = MemoryUsage(rss=GIB + 1)
            await manager.answered("a", generation=address.generation, cached=0, prompt=5)
            await manager.unload("a")
            told = await anext(event async for event in events if isinstance(event, ModelChanged))
            assert told.status.state == "stopping"


async def test_a_client_is_told_the_sum_when_its_model_can_never_fit(tmp_path: Path) -> None:
    profiles = {"a": {"memory": "3GiB"}, "huge": {"memory": "9GiB"}}
    async with house_in(tmp_path)(profiles, supervisor={"memory_budget": "8GiB"}) as house:
        assert (await house.chat("a")).status_code == 200
        answer = await house.chat("huge")
        assert answer.status_code == 503
        assert "it needs 9.0 GiB of 8.0 GiB" in answer.json()["error"]["message"]
        assert house.starts() == ["a"]


async def test_a_driver_that_fails_ends_nothing(scripted: Scripted, running: Running, journal: Any) -> None:
    class Broken(PretendedMeter):
        def measure(self, pid: int) -> MemoryUsage:
            raise RuntimeError("the driver has left")

    meter: Any = Broken(MemoryUsage())
    async with running(EngineManager([scripted("a")], SHARED, meter=meter)) as manager:
        address = await manager.switch("a")
        await manager.answered("a", generation=address.generation, cached=0, prompt=5)
        assert states(manager) == {"a": "ready"}
