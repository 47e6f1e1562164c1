"""State over restarts of the supervisor: pins, load times, and the files that hold them."""

from __future__ import annotations

import json
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
from fakes.managers import states

from hostler.profiles.schema import Profile
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Snapshot, SupportsPinning, UnknownProfile
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import MemoryHistory
from hostler.supervisor.state_store import JsonStore, PinStore, StateFiles

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
EXCLUSIVE = SupervisorSettings(exclusive=True, slots_max=0, stop_grace_s=5, backoff_s=0.05, max_backoff_s=0.4)


ServeAPI = Callable[..., AbstractAsyncContextManager[str]]


def pinned(manager: EngineManager) -> list[str]:
    return [profile.name for profile in manager.status_now().profiles if profile.pinned]


async def test_a_model_stays_loaded_while_it_is_pinned(scripted: Scripted, running: Running, journal: Any) -> None:
    async with running(EngineManager([scripted("a"), scripted("b"), scripted("c")], EXCLUSIVE)) as manager:
        await manager.switch("a")
        await manager.pin("a", True)
        await manager.switch("b")
        assert states(manager) == {"a": "ready", "b": "ready", "c": "stopped"}
        await manager.pin("a", False)
        await manager.switch("c")
        assert states(manager) == {"a": "stopped", "b": "stopped", "c": "ready"}


async def test_pinning_starts_nothing_and_publishes_a_snapshot(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a")], EXCLUSIVE)) as manager, manager.events() as events:
        await anext(events)
        await manager.pin("a", True)
        with anyio.fail_after(20):
            received = await anext(event async for event in events if isinstance(event, Snapshot) and pinned(manager))
        assert received.host.profiles[0].pinned
        assert journal.kinds() == []


async def test_a_pinned_model_that_dies_is_restarted(scripted: Scripted, running: Running, journal: Any) -> None:
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


async def test_a_pin_that_equals_the_profile_is_forgotten(
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
async def test_a_damaged_file_counts_as_missing(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "pins.json"
    file.write_bytes(content)
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(pins=file))) as manager:
        assert pinned(manager) == []


async def test_a_pin_that_cannot_be_written_is_logged_and_stops_nothing(
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
    scripted: Scripted, running: Running, journal: Any, serve_api: ServeAPI, tmp_path: Path
) -> None:
    profile = scripted("a", profile={"aliases": ("first",)})
    async with running(EngineManager([profile], EXCLUSIVE, state=StateFiles(pins=tmp_path / "pins.json"))) as manager:
        async with serve_api(manager, token="t") as url, SupervisorClient(url, "t") as client:
            assert isinstance(client, SupportsPinning)
            assert await client.pin("first", True)
            assert (await client.status()).profiles[0].pinned
            with pytest.raises(UnknownProfile):
                await client.pin("x", True)
            async with httpx.AsyncClient(base_url=url) as nobody:
                assert (await nobody.post("/models/pin", json={"model": "a", "pinned": False})).status_code == 401
            assert client.reachable
        assert pinned(manager) == ["a"]


async def test_damaged_load_times_count_as_missing(tmp_path: Path, scripted: Scripted, running: Running) -> None:
    file = tmp_path / "load-times.json"
    file.write_bytes(b'{"\xff": 1}')
    async with running(EngineManager([scripted("a")], EXCLUSIVE, state=StateFiles(load_times=file))) as manager:
        await manager.switch("a")


def test_half_written_files_of_a_killed_supervisor_are_removed(tmp_path: Path) -> None:
    for kept in (MemoryHistory(tmp_path / "footprints.json"), PinStore(tmp_path / "pins.json")):
        (tmp_path / "footprints.json.new").write_bytes(b"{")
        (tmp_path / "pins.json.new").write_bytes(b"{")
        before = len(list(tmp_path.iterdir()))
        kept.read()
        assert len(list(tmp_path.iterdir())) == before - 1


def test_a_stored_value_is_readable_by_its_owner_only_and_carries_a_version(tmp_path: Path) -> None:
    store = JsonStore(tmp_path / "state" / "pins.json", dict[str, bool], contents="pins", sync=True)
    assert store.write(lambda: {"a": True})
    assert json.loads((tmp_path / "state" / "pins.json").read_bytes()) == {"version": 1, "value": {"a": True}}
    assert (tmp_path / "state" / "pins.json").stat().st_mode & 0o777 == 0o600
    assert store.read() == {"a": True}
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["pins.json"]


def test_a_file_of_an_older_release_holds_the_bare_value(tmp_path: Path) -> None:
    (tmp_path / "pins.json").write_text('{"a": true}')
    assert JsonStore(tmp_path / "pins.json", dict[str, bool], contents="pins").read() == {"a": True}


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 7}', b'{"version": 2, "value": {}}', b"\xff", b"[" * 100_000])
def test_a_file_that_cannot_be_read_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "pins.json").write_bytes(content)
    assert JsonStore(tmp_path / "pins.json", dict[str, bool], contents="pins").read() is None
    assert f"{tmp_path / 'pins.json'}: cannot be read, pins lost" in caplog.text


def test_a_missing_file_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert JsonStore(tmp_path / "pins.json", dict[str, bool], contents="pins").read() is None
    assert not caplog.records


def test_a_file_that_cannot_be_written_is_logged_once_until_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("in the way")
    store = JsonStore(tmp_path / "state" / "pins.json", dict[str, bool], contents="pins")
    assert [store.write(dict), store.write(dict)] == [False, False]
    assert caplog.text.count("cannot be written, pins will be lost at the next restart") == 1
    (tmp_path / "state").unlink()
    assert store.write(dict)


def test_what_a_running_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    ours, parents = (tmp_path / f"pins.json.{pid}.new" for pid in (os.getpid(), os.getppid()))
    for file in (ours, parents, tmp_path / "pins.json.999999999.new", tmp_path / "pins.json.new"):
        file.write_bytes(b"{")
    JsonStore(tmp_path / "pins.json", dict[str, bool], contents="pins").read()
    assert list(tmp_path.iterdir()) == [parents]


@pytest.mark.parametrize("name", ["pins.json.999999999.new", "pins.json.99999999999999999999.new"])
def test_a_leftover_that_cannot_be_removed_does_not_hide_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "pins.json").write_text('{"a": true}')
    (tmp_path / name).mkdir()
    assert JsonStore(tmp_path / "pins.json", dict[str, bool], contents="pins").read() == {"a": True}
