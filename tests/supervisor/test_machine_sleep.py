"""When a machine is put to sleep, what keeps it awake, and what happens if it does not sleep."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hostler.supervisor.config import SleepSettings
from hostler.supervisor.machine_sleep import MachineSleep

pytestmark = pytest.mark.anyio


class Host:
    """A host that notes when it is paused and resumed."""

    def __init__(self) -> None:
        self.idle_since: float | None = float("-inf")
        self.events: list[str] = []
        self.gateways = 1
        self.resumed = anyio.Event()

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")
        self.resumed.set()


def noting(file: Path, code: int = 0) -> str:
    """A command that notes its run, and ends with the code."""
    script = f"open({str(file)!r}, 'a').write('x'); raise SystemExit({code})"
    return f'{sys.executable} -I -S -c "{script}"'


@asynccontextmanager
async def sleeping(host: Host, command: str, after_s: float = 0.05, **more: Any) -> AsyncIterator[None]:
    settings = SleepSettings(after_s=after_s, command=command)
    async with anyio.create_task_group() as tasks:
        subject = MachineSleep(settings, host, clock=anyio.current_time, falls_asleep_s=0.05, asks_s=0.0, **more)
        tasks.start_soon(subject.run)
        yield
        tasks.cancel_scope.cancel()


async def test_runs_the_command_of_an_idle_host_between_pause_and_resume(tmp_path: Path) -> None:
    host, ran = Host(), tmp_path / "ran"
    async with sleeping(host, noting(ran)):
        with anyio.fail_after(20):
            await host.resumed.wait()
        assert host.events[:2] == ["pause", "resume"]
    assert ran.read_text().startswith("x")


@pytest.mark.parametrize("reason", ["in use", "download"])
async def test_does_not_sleep_while_something_goes_on(tmp_path: Path, reason: str) -> None:
    host, looks = Host(), anyio.Event()
    calls = 0

    def keep_awake() -> bool:
        nonlocal calls
        calls += 1
        if calls >= 10:
            looks.set()
        return reason == "download"

    class Busy(Host):
        @property
        def idle_since(self) -> float | None:
            keep_awake()
            return None

        @idle_since.setter
        def idle_since(self, value: float | None) -> None:
            pass

    host = Busy() if reason == "in use" else Host()
    async with sleeping(host, noting(tmp_path / "ran"), keep_awake=keep_awake):
        with anyio.fail_after(20):
            await looks.wait()
    assert host.events == []


async def test_the_idle_time_begins_with_the_last_request(tmp_path: Path) -> None:
    host = Host()
    async with sleeping(host, noting(tmp_path / "ran"), after_s=0.4):
        host.idle_since = last = anyio.current_time() + 0.2
        with anyio.fail_after(20):
            await host.resumed.wait()
        assert anyio.current_time() - last >= 0.4


@pytest.mark.parametrize("command", ["/does/not/exist", None])
async def test_a_command_that_fails_is_logged_and_the_host_goes_on(
    tmp_path: Path, command: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host()
    async with sleeping(host, command or noting(tmp_path / "ran", code=3)):
        with anyio.fail_after(20):
            await host.resumed.wait()
    assert "supervisor.sleep" in caplog.text


async def test_a_command_that_does_not_end_is_ended_and_the_host_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    async with sleeping(host, "sleep 600", command_s=0.05):
        with anyio.fail_after(20):
            await host.resumed.wait()
    assert "did not end within 0.05 s" in caplog.text


async def test_a_command_that_does_not_end_after_the_machine_has_woken_holds_up_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host, ran = Host(), tmp_path / "ran"
    script = f"sh -c 'touch {ran}; exec sleep 600'"
    async with sleeping(host, script, suspended_s=lambda: 3600.0 if ran.exists() else 0.0):
        with anyio.fail_after(20):
            await host.resumed.wait()
    assert "supervisor.sleep" not in caplog.text


async def test_a_machine_that_someone_else_has_woken_does_not_sleep_again_at_once(tmp_path: Path) -> None:
    host, slept = Host(), anyio.Event()
    host.gateways = 0
    looks = 0

    def suspended_s() -> float:
        nonlocal looks
        looks += 1
        if looks > 1:
            slept.set()
        return 0.0 if looks == 1 else 3600.0

    async with sleeping(host, noting(tmp_path / "ran"), suspended_s=suspended_s):
        with anyio.fail_after(20):
            await slept.wait()
        with anyio.move_on_after(0.3):  # several times `after_s`
            await host.resumed.wait()
        assert host.events == []
        host.gateways = 1
        with anyio.fail_after(20):
            await host.resumed.wait()
    assert host.events[:2] == ["pause", "resume"]


def test_the_system_suspends_without_a_command() -> None:
    assert SleepSettings(after_s=1, suspend=True).argv == ["systemctl", "suspend"]
    assert SleepSettings(after_s=1, command="sh -c 'a b'").argv == ["sh", "-c", "a b"]
