"""What models were seen to take corrects estimates after a restart, too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.meter import PretendedMeter

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.manager import EngineManager, StateFiles, create_manager
from hostler.supervisor.memory import GIB, MemoryHistory, MemoryUsage, PeakMemory
from hostler.supervisor.model_files import FileDescription
from hostler.supervisor.state_store import PinStore

pytestmark = pytest.mark.anyio

Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]

SHARED = SupervisorSettings(memory_budget=Size(8 * GIB))
ESTIMATED = FileDescription(facts=ModelFacts(bytes=2 * GIB), size=7, modified_at=1.0)


def fleet_of(profile: Profile, file: Path, usage: MemoryUsage, described: FileDescription = ESTIMATED) -> EngineManager:
    meter: Any = PretendedMeter(usage)
    return EngineManager([profile], SHARED, meter=meter, describe=lambda _: described, state=StateFiles(memory=file))


async def need(manager: EngineManager) -> int:
    """What it will take, once its file has been looked at."""
    async with manager.events() as events:
        await anext(events)
    return manager.status_now().profiles[0].memory_bytes


@pytest.mark.parametrize("usage", [MemoryUsage(rss=GIB), MemoryUsage(rss=5 * GIB), MemoryUsage(rss=GIB, gpu=4 * GIB)])
async def test_what_was_seen_counts_after_a_restart(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, usage: MemoryUsage
) -> None:
    file = tmp_path / "state" / "footprints.json"
    async with running(fleet_of(scripted("a"), file, usage)) as manager:
        address = await manager.switch("a")
        await manager.answered("a", generation=address.generation, cached=0, prompt=5)
    seen = usage.gpu or usage.rss
    async with running(fleet_of(scripted("a"), file, usage)) as manager:
        assert await need(manager) == seen
        await manager.replace_profiles([scripted("a", profile={"description": "other words"})])
        assert await need(manager) == seen
        # Another engine command is another thing.
        await manager.replace_profiles([scripted("a", profile={"context": 512})])
        assert await need(manager) > 2 * GIB
    replaced = FileDescription(facts=ModelFacts(bytes=2 * GIB), size=8, modified_at=2.0)
    async with running(fleet_of(scripted("a"), file, usage, replaced)) as manager:
        assert await need(manager) > 2 * GIB


async def test_what_is_seen_now_counts_more_than_what_was(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "footprints.json"
    for usage, before in ((MemoryUsage(rss=6 * GIB), 0), (MemoryUsage(rss=3 * GIB), 6 * GIB)):
        async with running(fleet_of(scripted("a"), file, usage)) as manager:
            address = await manager.switch("a")
            if before:
                async with manager.events() as events:
                    async for _ in events:
                        if manager.status_now().models[0].memory_bytes:
                            break
                # Engines take their memory while they work: it has not answered yet.
                assert await need(manager) == before
            await manager.answered("a", generation=address.generation, cached=0, prompt=5)
            assert await need(manager) == usage.rss


async def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, scripted: Scripted, running: Running) -> None:
    file = tmp_path / "footprints.json"
    for damage in (b'{"\xff": 1}', b"[]", b'{"a": {"key": 1}}', b'{"a": ' * 100_000, b""):
        file.write_bytes(damage)
        async with running(fleet_of(scripted("a"), file, MemoryUsage())) as manager:
            assert await need(manager) > 2 * GIB


def test_what_a_supervisor_that_died_had_begun_is_cleared_away(tmp_path: Path) -> None:
    for kept in (MemoryHistory(tmp_path / "footprints.json"), PinStore(tmp_path / "pins.json")):
        (tmp_path / "footprints.json.new").write_bytes(b"{")
        (tmp_path / "pins.json.new").write_bytes(b"{")
        before = len(list(tmp_path.iterdir()))
        kept.read()
        assert len(list(tmp_path.iterdir())) == before - 1


def test_only_what_differs_is_worth_writing_down(tmp_path: Path) -> None:
    known = MemoryHistory(tmp_path / "footprints.json")
    seen = PeakMemory(rss=1000, settled=True)
    assert known.record("a", "k", seen)
    assert not known.record("a", "k", PeakMemory(rss=1001, settled=True))
    assert known.record("a", "k", PeakMemory(rss=2000, settled=True))
    known.write()
    again = MemoryHistory(tmp_path / "footprints.json")
    again.read()
    assert again.get("a", "k") == PeakMemory(rss=2000, settled=True)
    assert again.get("a", "other") is None
    assert [path.name for path in tmp_path.iterdir()] == ["footprints.json"]


async def test_a_host_remembers_it_beside_the_load_times(tmp_path: Path, scripted: Scripted, running: Running) -> None:
    environ = {"HOSTLER_CACHE": str(tmp_path / "cache")}
    async with running(create_manager([scripted("a")], SHARED, environ=environ)) as manager:
        address = await manager.switch("a")
        await manager.answered("a", generation=address.generation, cached=0, prompt=5)
        with anyio.fail_after(20):
            while not list((tmp_path / "cache").rglob("footprints.json")):  # noqa: ASYNC110 - a file
                await anyio.sleep(0.01)
