"""An operator's word on which models stay, on the host that keeps it: in effect at once, and after a restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from hostler.profiles.schema import Profile
from hostler.supervisor.api import create_app
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Snapshot, StaleEpoch, SupportsPinning, UnknownProfile
from hostler.supervisor.manager import EngineManager, StateFiles

pytestmark = pytest.mark.anyio

Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
Serve = Callable[[Starlette], AbstractAsyncContextManager[str]]

EXCLUSIVE = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, max_backoff_s=0.4)


def states(manager: EngineManager) -> dict[str, str]:
    return {status.model: status.state for status in manager.status_now().models}


def pinned(manager: EngineManager) -> list[str]:
    return [profile.name for profile in manager.status_now().profiles if profile.pinned]


async def test_a_model_stays_from_the_moment_it_is_pinned_and_goes_when_it_is_not(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a"), scripted("b"), scripted("c")], EXCLUSIVE)) as manager:
        await manager.switch("a")
        await manager.pin("a", True)
        await manager.switch("b")
        assert states(manager) == {"a": "ready", "b": "ready", "c": "stopped"}
        await manager.pin("a", False)
        await manager.switch("c")
        assert states(manager) == {"a": "stopped", "b": "stopped", "c": "ready"}


async def test_pinning_starts_nothing_and_is_told_to_whoever_listens(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a")], EXCLUSIVE)) as manager, manager.events() as events:
        await anext(events)
        await manager.pin("a", True)
        with anyio.fail_after(20):
            told = await anext(event async for event in events if isinstance(event, Snapshot) and pinned(manager))
        assert told.host.profiles[0].pinned
        assert journal.kinds() == []


async def test_a_pinned_model_that_dies_comes_back(scripted: Scripted, running: Running, journal: Any) -> None:
    async with running(EngineManager([scripted("a")], EXCLUSIVE)) as manager:
        await manager.switch("a")
        await manager.pin("a", True)
        (status,) = manager.status_now().models
        assert status.pid is not None
        os.killpg(status.pid, signal.SIGKILL)
        await journal.until("start", 2)


async def test_pins_outlast_a_restart_and_profiles_that_are_read_again(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "pins.json"
    profiles = [scripted("a"), scripted("p", profile={"pinned": True}), scripted("b")]
    async with running(EngineManager(profiles, EXCLUSIVE, state=StateFiles(pins=file))) as manager:
        assert await manager.pin("a", True)
        assert await manager.pin("p", False)
        await manager.replace_profiles([msgspec.structs.replace(each, description="new") for each in profiles])
        assert pinned(manager) == ["a"]
    started = len(journal.events("start", "p"))
    async with running(EngineManager(profiles, EXCLUSIVE, state=StateFiles(pins=file))) as manager:
        await manager.switch("a")  # which joins: pinned models are started with their host
        assert pinned(manager) == ["a"]
        await manager.switch("b")
        assert states(manager) == {"a": "ready", "p": "stopped", "b": "ready"}
    assert len(journal.events("start", "p")) == started


async def test_a_word_that_says_what_the_profile_says_is_forgotten(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "pins.json"
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(pins=file))) as manager:
        await manager.pin("a", True)
        await manager.pin("a", False)
        await manager.replace_profiles([scripted("a", profile={"pinned": True})])
        assert pinned(manager) == ["a"]
    assert file.read_bytes() == b'{"version":1,"value":{}}'


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": "yes"}', b"\xff"])
async def test_a_damaged_file_is_as_good_as_none(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "pins.json"
    file.write_bytes(content)
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(pins=file))) as manager:
        assert pinned(manager) == []


async def test_a_disk_that_takes_nothing_is_told_and_stops_nothing(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    async with running(
        EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(pins=tmp_path / "file" / "pins.json"))
    ) as manager:
        assert not await manager.pin("a", True)
        assert pinned(manager) == ["a"]
    assert "lost at the next restart" in caplog.text


async def test_a_gateway_elsewhere_pins_over_http(
    scripted: Scripted, running: Running, journal: Any, serve: Serve, tmp_path: Path
) -> None:
    profile = scripted("a", profile={"aliases": ("first",)})
    async with running(EngineManager([profile], EXCLUSIVE, state=StateFiles(pins=tmp_path / "pins.json"))) as manager:
        async with serve(create_app(manager, token="t")) as url, SupervisorClient(url, "t") as client:
            assert isinstance(client, SupportsPinning)
            assert await client.pin("first", True, epoch=5)
            assert (await client.status()).profiles[0].pinned
            with pytest.raises(StaleEpoch):
                await client.pin("a", False, epoch=4)
            with pytest.raises(UnknownProfile):
                await client.pin("x", True, epoch=5)
            async with httpx.AsyncClient(base_url=url) as nobody:
                assert (await nobody.post("/models/pin", json={"model": "a", "pinned": False})).status_code == 401
            assert client.reachable
        assert pinned(manager) == ["a"]
