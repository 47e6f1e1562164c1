"""Engines that sleep instead of being stopped, as their memory allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import psutil
import pytest
from fakes.memory_meter import FakeMemoryMeter
from fakes.stub_programs import StubPrograms
from system.running_gateway import gateway_starter

from hostler.profiles.engines import SleepRules
from hostler.profiles.schema import Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_command import engine_preset
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB, MIB, MemoryUsage

pytestmark = pytest.mark.anyio
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
EXCLUSIVE = SupervisorSettings()
BUDGET = SupervisorSettings(exclusive=True, memory_budget=Size(10 * GIB))


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubPrograms:
    """Stubs of the programs, first on the PATH."""
    programs = StubPrograms(tmp_path)
    monkeypatch.setenv("PATH", f"{programs.folder}{os.pathsep}{os.environ['PATH']}")
    return programs


Sized = Callable[..., Profile]


@pytest.fixture
def sized(stubs: StubPrograms, tmp_path: Path) -> Sized:
    """`sized("name", 4)` is a profile of 4 GiB whose engine can sleep."""
    engine = engine_preset("vllm-sleep")
    assert engine is not None and engine.sleep is not None
    folder = tmp_path / "weights"
    folder.mkdir()

    def make(name: str, gib: int = 4, *, keeps_weights: bool = True, **script: Any) -> Profile:
        rules = SleepRules(path="/sleep?level=1", wake="/wake_up", keeps_weights=keeps_weights)
        definition = msgspec.structs.replace(engine, sleep=rules)
        return Profile(
            name=name, model=str(folder), definition=definition, env=stubs.env(**script), memory=Size(gib * GIB)
        )

    return make


def manager_of(*profiles: Profile, settings: SupervisorSettings = EXCLUSIVE, free: int = 100 * GIB) -> EngineManager:
    return EngineManager(profiles, settings, free_memory=lambda: free)


def states(manager: EngineManager) -> dict[str, str]:
    return {each.model: "sleeping" if each.sleeping else each.state for each in manager.status_now().models}


def kinds(stubs: StubPrograms) -> list[str]:
    return [event["event"] for event in stubs.events() if event["event"] != "request"]


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def chat(address: EngineAddress) -> int:
    headers = {"Authorization": f"Bearer {address.key}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
        url = f"http://{address.host}:{address.port}/v1/chat/completions"
        return (await http.post(url, json={"model": address.model_name, "messages": []})).status_code


async def test_an_engine_sleeps_while_another_one_runs_and_wakes_again(
    sized: Sized, running: Running, stubs: StubPrograms
) -> None:
    async with running(manager_of(sized("a"), sized("b"))) as manager:
        first = await manager.switch("a")
        await manager.switch("b", evict=["a"])
        assert states(manager) == {"a": "sleeping", "b": "ready"}
        again = await manager.switch("a", evict=["b"])
        assert states(manager) == {"a": "ready", "b": "sleeping"}
        assert again.port == first.port and again.generation > first.generation
        assert await chat(again) == 200
    assert kinds(stubs)[:5] == ["start", "sleep", "start", "sleep", "wake"]


async def test_no_sleeping_engine_outlives_the_supervisor(sized: Sized, running: Running, stubs: StubPrograms) -> None:
    async with running(manager_of(sized("a"), sized("b"))) as manager:
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
    assert not [event["pid"] for event in stubs.events("start") if is_running(event["pid"])]


async def test_an_unloaded_model_does_not_sleep(sized: Sized, running: Running, stubs: StubPrograms) -> None:
    async with running(manager_of(sized("a"), sized("b"))) as manager:
        await manager.switch("a")
        await manager.unload("a")
        assert kinds(stubs) == ["start", "stop"]
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
        await manager.unload("a")
        assert states(manager) == {"a": "stopped", "b": "ready"}
        assert len(stubs.events("stop")) == 2


@pytest.mark.parametrize(
    ("script", "state"), [({"sleep_status": 500}, "stopped"), ({"wake_status": 500}, "sleeping")], ids=str
)
async def test_an_engine_that_refuses_is_stopped_and_started_instead(
    sized: Sized, running: Running, stubs: StubPrograms, script: dict[str, int], state: str
) -> None:
    async with running(manager_of(sized("a", **script), sized("b"))) as manager:
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
        assert states(manager)["a"] == state
        assert await chat(await manager.switch("a", evict=["b"])) == 200
        assert len(stubs.events("start")) == 3


async def test_an_engine_that_dies_in_its_sleep_is_started_again(
    sized: Sized, running: Running, stubs: StubPrograms
) -> None:
    async with running(manager_of(sized("a", dies_asleep=True), sized("b"))) as manager:
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
        with anyio.fail_after(20):
            async with manager.events() as events:
                while states(manager)["a"] != "stopped":
                    await anext(events)
        assert await chat(await manager.switch("a", evict=["b"])) == 200


@pytest.mark.parametrize(
    ("settings", "free", "keeps_weights", "state"),
    [
        (SupervisorSettings(), 8 * GIB - 1, True, "stopped"),
        (SupervisorSettings(), 8 * GIB, True, "sleeping"),
        (SupervisorSettings(), 4 * GIB, False, "sleeping"),
        (BUDGET, 100 * GIB, True, "sleeping"),
        (msgspec.structs.replace(BUDGET, memory_budget=Size(8 * GIB - 1)), 100 * GIB, True, "stopped"),
    ],
)
async def test_a_model_sleeps_only_where_its_weights_and_the_next_model_fit(
    sized: Sized, running: Running, settings: SupervisorSettings, free: int, keeps_weights: bool, state: str
) -> None:
    profiles = [sized("a", keeps_weights=keeps_weights), sized("b")]
    async with running(manager_of(*profiles, settings=settings, free=free)) as manager:
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
        assert states(manager)["a"] == state


async def test_a_sleeping_model_ends_when_its_memory_is_needed(
    sized: Sized, running: Running, stubs: StubPrograms
) -> None:
    profiles = [sized("a", 3), sized("b", 3), sized("c", 9)]
    async with running(manager_of(*profiles, settings=BUDGET)) as manager:
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
        assert states(manager)["a"] == "sleeping"
        await manager.switch("c", evict=["b"])
        assert states(manager) == {"a": "stopped", "b": "stopped", "c": "ready"}


async def test_no_engine_sleeps_on_a_host_that_is_drained(sized: Sized, running: Running) -> None:
    async with running(manager_of(sized("a"), sized("b"))) as manager, manager.events() as events:
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
        assert states(manager)["a"] == "sleeping"
        await manager.drain(True)
        with anyio.fail_after(10):
            async for _ in events:
                if states(manager)["a"] == "stopped":
                    break
        assert states(manager) == {"a": "stopped", "b": "ready"}


async def test_an_engine_that_falls_asleep_is_stopped_if_it_is_unloaded_meanwhile(
    sized: Sized, running: Running, stubs: StubPrograms
) -> None:
    async with running(manager_of(sized("a"))) as manager:
        await manager.switch("a")
        process = manager._models.get("a").process
        process.request_stop(sleep=True)
        process.request_stop()
        await process.stop(sleep=True)
        assert states(manager) == {"a": "stopped"}
    assert kinds(stubs) == ["start", "stop"]


@pytest.mark.parametrize(
    ("budget", "states_then"), [(9, ["sleeping", "ready", "ready"]), (8, ["sleeping", "ready", "stopped"])]
)
async def test_the_next_model_starts_early_only_if_what_sleeps_may_go_on(
    sized: Sized, running: Running, budget: int, states_then: list[str]
) -> None:
    profiles = [sized("a", 3), sized("b", 3), sized("c", 3)]
    settings = msgspec.structs.replace(BUDGET, memory_budget=Size(budget * GIB), prepare_next="start")
    async with running(manager_of(*profiles, settings=settings)) as manager:
        await manager.switch("a")
        await manager.switch("b", evict=["a"])
        await manager.prepare_next("c", start=True)
        assert list(states(manager).values()) == states_then


async def test_the_sleeping_model_that_was_used_least_recently_ends_first(sized: Sized, running: Running) -> None:
    profiles = [sized(name, 3) for name in "abcd"]
    async with running(manager_of(*profiles, settings=BUDGET)) as manager:
        for before, name in zip(("", "a", "b", "c"), "abcd", strict=True):
            await manager.switch(name, evict=[before] if before else [])
        assert states(manager) == {"a": "stopped", "b": "sleeping", "c": "sleeping", "d": "ready"}


async def test_what_a_sleeping_engine_takes_is_not_what_it_needs(sized: Sized, running: Running) -> None:
    meter: Any = FakeMemoryMeter(MemoryUsage(rss=MIB))
    profiles = [msgspec.structs.replace(sized(name), memory=None) for name in "ab"]
    async with running(EngineManager(profiles, EXCLUSIVE, meter=meter, free_memory=lambda: 100 * GIB)) as manager:
        await manager.switch("a")
        address = await manager.switch("b", evict=["a"])
        meter.usage = MemoryUsage(rss=30 * GIB)
        await manager.report_first_response("b", generation=address.generation, cached=0, prompt=5)
        status = manager.status_now()
        assert [model.memory_bytes for model in status.models] == [30 * GIB] * 2
        needs = [profile.memory_bytes for profile in status.profiles]
        assert needs[0] < GIB and needs[1] == 30 * GIB


async def test_clients_are_answered_by_engines_that_slept(stubs: StubPrograms, tmp_path: Path) -> None:
    profile = {"engine": "vllm-sleep", "model": "Qwen/Qwen3-8B", "memory": "1MiB", "env": stubs.env()}
    async with gateway_starter(tmp_path)({"a": profile, "b": profile}) as gateway:
        for model in "abab":
            answer = await gateway.chat(model)
            assert answer.status_code == 200, answer.text
        assert len(stubs.events("start")) == 2 and len(stubs.events("wake")) == 2
        states = {each["model"]: each for each in (await gateway.status())["hosts"][0]["host"]["models"]}
        assert states["a"]["sleeping"] and not states["b"]["sleeping"]
