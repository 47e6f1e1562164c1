"""Engines end with their supervisor, even if it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hostler.supervisor.reaper import Reaper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems end only engines that read their stdin")


#: Starts one engine and prints when it has started, and when it is ready.
PROGRAM = """
import sys, anyio
from hostler.profiles.schema import Profile
from hostler.supervisor.contract import ModelChanged
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.config import SupervisorSettings

async def main():
    engine, model, log, script, *path = sys.argv[1:]
    env = {"FAKE_LOG": log, "FAKE_ENGINE": script} | ({"PATH": path[0]} if path else {})
    profile = Profile(name="m", model=model, engine=engine, context=512, threads=1, env=env)
    manager = EngineManager([profile], SupervisorSettings())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.run)
        await manager.started()
        async with manager.events() as events:
            tasks.start_soon(manager.switch, "m")
            async for event in events:
                if isinstance(event, ModelChanged) and event.status.pid:
                    print(event.status.state, event.status.pid, flush=True)

anyio.run(main)
"""


class Parent:
    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)

    def until(self, state: str) -> int:
        """The engine's process id, once it is in `state`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            reported, pid = line.split()
            if reported == state:
                return int(pid)
        raise AssertionError(f"the engine never was {state}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def parents() -> Iterator[list[Parent]]:
    parents: list[Parent] = []
    yield parents
    for parent in parents:
        parent.kill()


def assert_gone(pid: int) -> None:
    try:
        psutil.Process(pid).wait(20)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        # Where no init process reaps it, a zombie is enough.
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "script", ["{}", '{"ready_after": 30}', '{"listen_after": 30, "ignore_stop": true}', '{"router_child": true}']
)
def test_a_scripted_engine_ends_with_its_supervisor(
    parents: list[Parent], fake_engine: str, journal: Any, tmp_path: Path, script: str
) -> None:
    parents.append(Parent(fake_engine, str(tmp_path), str(journal.file), script))
    pid = parents[0].until("ready" if script in ("{}", '{"router_child": true}') else "starting")
    parents[0].kill()
    assert_gone(pid)


def test_an_engine_ends_with_its_supervisor_even_without_a_launcher(
    parents: list[Parent], fake_engine: str, journal: Any, tmp_path: Path
) -> None:
    parents.append(Parent(fake_engine, str(tmp_path), str(journal.file), "{}", "/nowhere"))
    pid = parents[0].until("ready")
    parents[0].kill()
    assert_gone(pid)


@pytest.mark.parametrize("script", ['{"grandchild": true}', '{"grandchild": true, "ready_after": 30}'])
def test_what_an_engine_has_started_ends_with_the_supervisor_too(
    parents: list[Parent], fake_engine: str, journal: Any, tmp_path: Path, script: str
) -> None:
    parents.append(Parent(fake_engine, str(tmp_path), str(journal.file), script))
    pid = parents[0].until("starting" if "ready_after" in script else "ready")
    while not journal.events("grandchild"):
        time.sleep(0.01)
    parents[0].kill()
    assert_gone(pid)
    assert_gone(journal.events("grandchild")[0]["grandchild"])


def test_a_killed_reaper_is_replaced_and_forgotten_groups_are_left_alone() -> None:
    reaper = Reaper()
    watched, forgotten, later = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(3))
    try:
        reaper.watch(watched.pid)
        assert reaper.pid is not None
        os.kill(reaper.pid, signal.SIGKILL)
        assert_gone(reaper.pid)
        reaper.watch(forgotten.pid)
        reaper.watch(later.pid)
        reaper.forget(forgotten.pid)
        reaper.close()
        assert [watched.wait(20), later.wait(20)] == [-signal.SIGKILL, -signal.SIGKILL]
        assert_gone(reaper.pid)
        assert forgotten.poll() is None
    finally:
        for process in (watched, forgotten, later):
            process.kill()
            process.wait()


def test_a_reaper_ignores_the_signals_that_end_a_service() -> None:
    reaper = Reaper()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as watched:
        reaper.watch(watched.pid)
        assert reaper.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(reaper.pid, number)
        reaper.close()
        assert watched.wait(20) == -signal.SIGKILL


@pytest.mark.engine
@pytest.mark.parametrize("pause", [0.0, 0.1, 0.25, 0.4, None])
def test_the_real_engine_ends_with_its_supervisor(
    parents: list[Parent], real_model: Path, tmp_path: Path, pause: float | None
) -> None:
    pytest.importorskip("xllamacpp")
    parents.append(Parent("embedded", str(real_model), str(tmp_path / "log"), "{}"))
    pid = parents[0].until("ready" if pause is None else "starting")
    # Not to wait for something, but to hit another moment of its start.
    time.sleep(pause or 0)
    parents[0].kill()
    assert_gone(pid)
