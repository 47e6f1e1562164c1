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
from hostler.supervisor.contract import Pins, Snapshot, StaleEpoch, UnknownProfile
from hostler.supervisor.manager import Fleet

pytestmark = pytest.mark.anyio

Scripted = Callable[..., Profile]
Running = Callable[[Fleet], AbstractAsyncContextManager[Fleet]]
Serve = Callable[[Starlette], AbstractAsyncContextManager[str]]

EXCLUSIVE = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, max_backoff_s=0.4)


def states(fleet: Fleet) -> dict[str, str]:
    return {status.model: status.state for status in fleet.status_now().models}


def pinned(fleet: Fleet) -> list[str]:
    return [profile.name for profile in fleet.status_now().profiles if profile.pinned]


async def test_a_model_stays_from_the_moment_it_is_pinned_and_goes_when_it_is_not(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(Fleet([scripted("a"), scripted("b"), scripted("c")], EXCLUSIVE)) as fleet:
        await fleet.switch("a")
        await fleet.pin("a", True)
        await fleet.switch("b")
        assert states(fleet) == {"a": "ready", "b": "ready", "c": "stopped"}
        await fleet.pin("a", False)
        await fleet.switch("c")
        assert states(fleet) == {"a": "stopped", "b": "stopped", "c": "ready"}


async def test_pinning_starts_nothing_and_is_told_to_whoever_listens(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(Fleet([scripted("a")], EXCLUSIVE)) as fleet, fleet.events() as events:
        await anext(events)
        await fleet.pin("a", True)
        with anyio.fail_after(20):
            told = await anext(event async for event in events if isinstance(event, Snapshot) and pinned(fleet))
        assert told.host.profiles[0].pinned
        assert journal.kinds() == []


async def test_a_pinned_model_that_dies_comes_back(scripted: Scripted, running: Running, journal: Any) -> None:
    async with running(Fleet([scripted("a")], EXCLUSIVE)) as fleet:
        await fleet.switch("a")
        await fleet.pin("a", True)
        (status,) = fleet.status_now().models
        assert status.pid is not None
        os.killpg(status.pid, signal.SIGKILL)
        await journal.until("start", 2)


async def test_pins_outlast_a_restart_and_profiles_that_are_read_again(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "pins.json"
    profiles = [scripted("a"), scripted("p", profile={"pinned": True}), scripted("b")]
    async with running(Fleet(profiles, EXCLUSIVE, pins=file)) as fleet:
        assert await fleet.pin("a", True)
        assert await fleet.pin("p", False)
        await fleet.replace_profiles([msgspec.structs.replace(each, description="new") for each in profiles])
        assert pinned(fleet) == ["a"]
    started = len(journal.events("start", "p"))
    async with running(Fleet(profiles, EXCLUSIVE, pins=file)) as fleet:
        await fleet.switch("a")  # which joins: pinned models are started with their host
        assert pinned(fleet) == ["a"]
        await fleet.switch("b")
        assert states(fleet) == {"a": "ready", "p": "stopped", "b": "ready"}
    assert len(journal.events("start", "p")) == started


async def test_a_word_that_says_what_the_profile_says_is_forgotten(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "pins.json"
    async with running(Fleet([scripted("a")], EXCLUSIVE, pins=file)) as fleet:
        await fleet.pin("a", True)
        await fleet.pin("a", False)
        await fleet.replace_profiles([scripted("a", profile={"pinned": True})])
        assert pinned(fleet) == ["a"]
    assert file.read_bytes() == b"{}"


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": "yes"}', b"\xff"])
async def test_a_damaged_file_is_as_good_as_none(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "pins.json"
    file.write_bytes(content)
    async with running(Fleet([scripted("a")], EXCLUSIVE, pins=file)) as fleet:
        assert pinned(fleet) == []


async def test_a_disk_that_takes_nothing_is_told_and_stops_nothing(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    async with running(Fleet([scripted("a")], EXCLUSIVE, pins=tmp_path / "file" / "pins.json")) as fleet:
        assert not await fleet.pin("a", True)
        assert pinned(fleet) == ["a"]
    assert "forgotten at the next restart" in caplog.text


async def test_a_gateway_elsewhere_pins_over_http(
    scripted: Scripted, running: Running, journal: Any, serve: Serve, tmp_path: Path
) -> None:
    profile = scripted("a", profile={"aliases": ("first",)})
    async with running(Fleet([profile], EXCLUSIVE, pins=tmp_path / "pins.json")) as fleet:
        async with serve(create_app(fleet, token="t")) as url, SupervisorClient(url, "t") as client:
            assert isinstance(client, Pins)
            assert await client.pin("first", True, epoch=5)
            assert (await client.status()).profiles[0].pinned
            with pytest.raises(StaleEpoch):
                await client.pin("a", False, epoch=4)
            with pytest.raises(UnknownProfile):
                await client.pin("x", True, epoch=5)
            async with httpx.AsyncClient(base_url=url) as nobody:
                assert (await nobody.post("/models/pin", json={"model": "a", "pinned": False})).status_code == 401
            assert client.reachable
        assert pinned(fleet) == ["a"]
