"""Whether there is memory for a model beside those that run, and what happens if that was wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import msgspec
import pytest
from fakes.flag_file import FlagFile
from fakes.managers import states
from fakes.sized_models import START_EARLY, manager_of, sized

from hostler.profiles.schema import Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB
from hostler.supervisor.model_files import FileDescription

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
Flags = Callable[[str], FlagFile]


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        (START_EARLY, 4 * GIB - 1),
        (msgspec.structs.replace(START_EARLY, exclusive=True, memory_budget=Size(7 * GIB)), 100 * GIB),
        (msgspec.structs.replace(START_EARLY, prepare_next="read"), 100 * GIB),
    ],
    ids=["memory", "budget", "setting"],
)
async def test_it_does_not_start_without_room(
    scripted: Scripted, running: Running, journal: Any, settings: SupervisorSettings, free: int
) -> None:
    profiles = [sized(scripted, "a"), sized(scripted, "b")]
    async with running(manager_of(*profiles, settings=settings, free=free)) as manager:
        await manager.switch("a")
        await manager.prepare_next("b", start=True)
        assert states(manager) == {"a": "ready", "b": "stopped"}


async def test_a_model_of_unknown_size_does_not_start_early(scripted: Scripted, running: Running, journal: Any) -> None:
    profiles = [sized(scripted, "a"), scripted("b")]
    async with running(EngineManager(profiles, START_EARLY, describe=lambda _: FileDescription())) as manager:
        await manager.switch("a")
        await manager.prepare_next("b", start=True)
        assert states(manager)["b"] == "stopped"


async def test_a_start_that_lacked_memory_is_not_repeated_beside_others(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    crowded = sized(scripted, "b", exit_code=1, exit_times=2, stderr="failed to allocate buffer")
    async with running(manager_of(sized(scripted, "a"), crowded)) as manager:
        await manager.switch("a")
        for _ in range(2):
            await manager.prepare_next("b", start=True)
        assert len(journal.events("start", "b")) == 2, "a start without memory is tried twice"
        await manager.switch("b", evict=["a"])
        assert states(manager) == {"a": "stopped", "b": "ready"}


async def test_a_start_that_lacked_memory_beside_a_saved_model_is_repeated_after_it(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    gone = flags("gone")
    crowded = sized(scripted, "b", exit_code=1, exit_times=2, stderr="failed to allocate buffer")
    async with running(manager_of(sized(scripted, "a", gone_when=gone.path), crowded)) as manager:
        await manager.switch("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: manager.switch("b", evict=["a"]))
            await journal.until("start", 3)
            gone.set()
        assert states(manager) == {"a": "stopped", "b": "ready"}
        await manager.switch("a", evict=["b"])
        before = len(journal.kinds())
        await manager.switch("b", evict=["a"])
        assert [each for each in journal.kinds()[before:] if each != ("stop", "b")] == [("stop", "a"), ("start", "b")]
