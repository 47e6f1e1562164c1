"""Which gateway a host obeys: the one that was started last, also after the host's own restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Snapshot, StaleEpoch
from hostler.supervisor.manager import EngineManager, StateFiles, create_manager

pytestmark = pytest.mark.anyio

Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]

EXCLUSIVE = SupervisorSettings(exclusive=True, slots_max=0)


async def test_a_gateway_that_was_overtaken_is_refused_after_a_restart_of_the_host_too(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "epochs" / "here.json"
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(epoch=file))) as manager:
        await manager.switch("a", epoch=7)
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(epoch=file))) as manager:
        for order in (manager.switch, manager.unload):
            with pytest.raises(StaleEpoch, match="6 is stale; the current one is 7"):
                await order("a", epoch=6)
        await manager.unload("a", epoch=7)


async def test_who_follows_a_host_after_its_restart_hears_of_the_epoch_before(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "here.json"
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(epoch=file))) as manager:
        await manager.unload("a", epoch=7)
    async with (
        running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(epoch=file))) as manager,
        manager.events() as events,
    ):
        first = await anext(events)
        assert isinstance(first, Snapshot) and first.host.epoch == 7


async def test_the_epoch_is_noted_before_the_order_is_carried_out(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "here.json"
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(epoch=file))) as manager:
        await manager.unload("a", epoch=8)
        assert json.loads(file.read_bytes())["value"] == 8
        file.unlink()
        await manager.unload("a", epoch=8)
        assert not file.exists()  # known already: orders do not wait for a disk


@pytest.mark.parametrize("content", [b"", b'"7"', b"[", b"\xff"])
async def test_a_damaged_note_is_as_good_as_none(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "here.json"
    file.write_bytes(content)
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(epoch=file))) as manager:
        await manager.unload("a", epoch=1)


async def test_a_disk_that_takes_nothing_is_told_and_stops_nothing(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    async with running(
        EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(epoch=tmp_path / "file" / "here.json"))
    ) as manager:
        await manager.unload("a", epoch=1)
        await manager.unload("a", epoch=1)
        with pytest.raises(StaleEpoch):
            await manager.unload("a", epoch=0)
    assert caplog.text.count("lost at the next restart") == 1


async def test_hosts_of_one_machine_do_not_take_each_others_epochs_for_their_own(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    environ = {"HOSTLER_CACHE": str(tmp_path)}

    def host(place: str | None) -> EngineManager:
        return create_manager([scripted("a")], EXCLUSIVE, environ=environ, place=place)

    async with running(host("127.0.0.1:8080")) as manager:
        await manager.unload("a", epoch=9)
    for other, epoch in (("[::1]:8080", 0), ("127.0.0.1:8081", 0), (None, 0), ("127.0.0.1:8080", 9)):
        async with running(host(other)) as manager:
            assert manager.status_now().epoch == epoch
