"""Which models of a host run together: budgets of GPUs, groups, sets, preloading, and room for other programs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import msgspec
import pytest
from fakes.managers import ready, until
from fakes.memory_meter import FakeMemoryMeter

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import DeviceSettings, SupervisorSettings
from hostler.supervisor.contract import DevicesRead, SupervisorError
from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB, MIB, MemoryUsage
from hostler.supervisor.memory_meter import Measurement
from hostler.supervisor.model_files import FileDescription

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
SETTINGS = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, drain_s=60)
CARD = DeviceReading(id="GPU-a", vendor="nvidia", model="RTX 4090", total=24 * GIB, used=0)


def settings(**more: Any) -> SupervisorSettings:
    return msgspec.structs.replace(SETTINGS, **more)


def on_gpu(scripted: Scripted, name: str, gib: int, *devices: str, **more: Any) -> Profile:
    return scripted(name, profile={"memory": gib * GIB, "devices": devices or None, **more})


async def test_what_engines_keep_on_a_gpu_counts_although_no_gpu_can_be_read(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    """Three models of 431 MiB do not fit into 980 MiB, although their processes show 60 MiB each."""
    facts = FileDescription(facts=ModelFacts(architecture="llama", bytes=431 * MIB))
    meter: Any = FakeMemoryMeter(MemoryUsage(rss=60 * MIB))
    # The estimate alone has working memory for a large vocabulary, which would hide the mistake.
    profiles = [scripted(name, profile={"batch": 1}) for name in "abc"]
    manager = EngineManager(profiles, settings(memory_budget=Size(980 * MIB)), meter=meter, describe=lambda _: facts)
    async with running(manager):
        for model in "abc":
            address = await manager.switch(model)
            await manager.report_first_response(model, generation=address.generation, cached=0, prompt=5)
        assert len(ready(manager)) == 2


async def test_each_gpu_has_its_budget(scripted: Scripted, running: Running, journal: Any) -> None:
    devices = {"gpu0": DeviceSettings(budget=Size(10 * GIB)), "gpu1": DeviceSettings(budget=Size(5 * GIB))}
    profiles = [
        on_gpu(scripted, "a", 8, "gpu0"), on_gpu(scripted, "b", 5, "gpu1"), on_gpu(scripted, "c", 3, "gpu0"),
        on_gpu(scripted, "huge", 6, "gpu1"), on_gpu(scripted, "split", 15),
    ]  # fmt: skip
    async with running(EngineManager(profiles, settings(devices=devices))) as manager:
        await manager.switch("a")
        await manager.switch("b")
        assert ready(manager) == ["a", "b"]
        await manager.switch("c")
        assert ready(manager) == ["b", "c"]
        with pytest.raises(
            SupervisorError, match=r"on gpu1; models may take 5\.0 GiB of it: raise devices\.gpu1\.budget"
        ):
            await manager.switch("huge")
        assert manager.status_now().profiles[4].device_bytes == {"gpu0": 10 * GIB, "gpu1": 5 * GIB}
        await manager.switch("split")
        assert ready(manager) == ["split"]


async def test_groups_and_sets_hold_for_switches_without_a_gateway(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    profiles = [scripted(name) for name in "abxy"]
    async with running(EngineManager(profiles, settings(groups={"one": ("a", "b"), "two": ("x", "y")}))) as manager:
        for model in "axb":
            await manager.switch(model)
        assert ready(manager) == ["b", "x"]
    async with running(EngineManager(profiles, settings(sets=(("a", "b"), ("b", "x"))))) as manager:
        for model in "abxy":
            await manager.switch(model)
            if model == "x":
                assert ready(manager) == ["b", "x"]
        assert ready(manager) == ["y"]


async def test_what_fits_is_preloaded_and_can_be_evicted(
    scripted: Scripted, running: Running, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    profiles = [scripted(name, profile={"preload": name != "c"}) for name in "abc"]
    async with running(EngineManager(profiles, SETTINGS)) as manager:
        await until(manager, lambda: ready(manager) == ["a"])
        with anyio.fail_after(20):
            while "b: not preloaded" not in caplog.text:  # noqa: ASYNC110 - a line of the log
                await anyio.sleep(0.01)
        await manager.switch("c")
        assert ready(manager) == ["c"]


class _Card(FakeMemoryMeter):
    """One GPU. Each measurement takes the next of `used`, the last one again and again; engines take `each`."""

    def __init__(self, each: int, *used: int) -> None:
        super().__init__(MemoryUsage(rss=MIB, gpu=each, devices={"gpu0": each} if each else {}))
        self.used = list(used)

    def measure(self, pids: Collection[int]) -> Measurement:
        used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        self.devices = (msgspec.structs.replace(CARD, used=used),)
        return super().measure(pids)


async def test_a_start_waits_until_the_driver_has_freed_the_last_models_memory(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    meter = _Card(0, 20 * GIB)
    profiles = [on_gpu(scripted, "a", 20), on_gpu(scripted, "b", 20)]
    async with running(EngineManager(profiles, SETTINGS, meter=meter)) as manager:
        await until(manager, lambda: bool(manager.status_now().devices))
        await manager.switch("a")
        starts: list[int] = []

        class Watching(list[int]):
            def pop(self, index: Any = -1) -> int:
                starts.append(len(journal.events("start", "b")))
                return super().pop(index)

        meter.used = Watching([20 * GIB, 19 * GIB, 18 * GIB, 3 * GIB])
        await manager.switch("b")
        assert starts[:3] == [0, 0, 0]
        assert meter.used == [3 * GIB]


async def test_memory_that_is_never_freed_delays_a_start_only_so_long(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    profiles = [on_gpu(scripted, "a", 20), on_gpu(scripted, "b", 20)]
    async with running(EngineManager(profiles, SETTINGS, meter=_Card(0, 20 * GIB))) as manager:
        await until(manager, lambda: bool(manager.status_now().devices))
        await manager.switch("a")
        with anyio.fail_after(30):
            await manager.switch("b")
        assert ready(manager) == ["b"]


async def test_readings_are_published_with_what_each_model_takes(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    meter = _Card(5 * GIB, 7 * GIB)
    devices = {"gpu0": DeviceSettings(budget=Size(23 * GIB))}
    async with running(EngineManager([scripted("a")], settings(devices=devices), meter=meter)) as manager:
        address = await manager.switch("a")
        async with manager.events() as events:
            await anext(events)
            for _ in range(3):
                await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
            meter.used = [8 * GIB]
            await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
            with anyio.fail_after(20):
                read = [event async for event in _take(events, lambda event: _used(event) == 8 * GIB)][-1]
        assert isinstance(read, DevicesRead)
        (device,) = read.devices
        assert (device.name, device.model, device.other_bytes, device.capacity_bytes) == (
            "gpu0", "RTX 4090", 2 * GIB, 22 * GIB,
        )  # fmt: skip
        status = manager.status_now()
        assert status.devices == read.devices
        assert status.models[0].device_bytes == {"gpu0": 5 * GIB}
        assert status.profiles[0].device_bytes == {"gpu0": 5 * GIB}


def _used(event: Any) -> int | None:
    return event.devices[0].used_bytes if isinstance(event, DevicesRead) else None


async def _take(events: Any, last: Callable[[Any], bool]) -> Any:
    """The events up to the one for which `last` holds."""
    async for event in events:
        yield event
        if last(event):
            return
