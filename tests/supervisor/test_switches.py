"""Which models stop for another one: idle ones first, and only if it needs their memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
from fakes.flag_file import FlagFile
from fakes.managers import chat, phases, ready, states, until
from fakes.memory_meter import FakeMemoryMeter
from system.running_gateway import gateway_starter

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError, SwitchMoved
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB, MemoryUsage
from hostler.supervisor.model_files import FileDescription
from hostler.supervisor.switches import SwitchOperation

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
EXCLUSIVE = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, drain_s=60)
SHARED = msgspec.structs.replace(EXCLUSIVE, memory_budget=Size(8 * GIB))


async def test_measurements_decide_which_model_is_evicted(scripted: Scripted, running: Running, journal: Any) -> None:
    meter: Any = FakeMemoryMeter(MemoryUsage(rss=5 * GIB))
    async with running(EngineManager([scripted("a"), scripted("b")], SHARED, meter=meter)) as manager:
        await manager.switch("a")
        await until(manager, lambda: manager.status_now().profiles[0].memory_bytes == 5 * GIB)
        await manager.switch("b")
        assert states(manager) == {"a": "ready", "b": "ready"}
        await until(manager, lambda: manager.status_now().profiles[1].memory_bytes == 5 * GIB)
        await manager.unload("b")
        await manager.switch("b")
        assert states(manager) == {"a": "stopped", "b": "ready"}


async def test_a_model_that_can_never_fit_is_refused_and_evicts_no_other(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    huge = FileDescription(facts=ModelFacts(architecture="llama", bytes=9 * GIB, kv_bytes_per_token=1024 * 1024))
    manager = EngineManager(
        [scripted("a"), scripted("huge")], SHARED,
        describe=lambda profile: huge if profile.name == "huge" else FileDescription(),
    )  # fmt: skip
    async with running(manager):
        await manager.switch("a")
        with pytest.raises(SupervisorError) as raised:
            await manager.switch("huge", evict=["a"])
        failure = raised.value.failure
        assert failure.kind == "does_not_fit"
        assert "huge needs 13.3 GiB (9.0 weights + 4.0 cache + 0.3 other); the budget is 8.0 GiB" in failure.message
        assert states(manager) == {"a": "ready", "huge": "stopped"}


async def test_a_refusal_names_the_pinned_models(scripted: Scripted, running: Running, journal: Any) -> None:
    sizes = {"p": 5, "a": 4}
    profiles = [scripted(name, profile={"memory": size * GIB, "pinned": name == "p"}) for name, size in sizes.items()]
    async with running(EngineManager(profiles, SHARED)) as manager:
        await until(manager, lambda: states(manager)["p"] == "ready")
        with pytest.raises(SupervisorError, match=r"does not fit into 8\.0 GiB beside pinned p"):
            await manager.switch("a")
        assert states(manager)["p"] == "ready"


async def test_pinned_models_start_and_restart_by_themselves(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    exclusive = SupervisorSettings(backoff_s=0.05)
    profiles = [scripted("p", profile={"pinned": True}), scripted("q"), scripted("a")]
    async with running(EngineManager(profiles, exclusive)) as manager:
        await until(manager, lambda: states(manager)["p"] == "ready")
        await manager.switch("a")
        pinned = [profiles[0], scripted("q", profile={"pinned": True}), profiles[2]]
        await manager.replace_profiles(pinned)
        await until(manager, lambda: states(manager)["q"] == "ready")
        assert states(manager) == {"p": "ready", "q": "ready", "a": "ready"}
        assert [event["model"] for event in journal.events("start")] == ["p", "a", "q"]


async def test_a_pinned_model_that_cannot_start_is_a_warning(
    scripted: Scripted, running: Running, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    profile = scripted("p", profile={"pinned": True}, exit_code=3)
    async with running(EngineManager([profile, scripted("a")], SupervisorSettings(max_failures=1))) as manager:
        await until(manager, lambda: states(manager)["p"] == "failed")
        assert (await manager.switch("a")).model == "a"
    assert "p: pinned, but cannot be started" in caplog.text


async def test_a_client_gets_the_sum_when_its_model_can_never_fit(tmp_path: Path) -> None:
    profiles = {"a": {"memory": "3GiB"}, "huge": {"memory": "9GiB"}}
    async with gateway_starter(tmp_path)(profiles, supervisor={"memory_budget": "8GiB"}) as gateway:
        assert (await gateway.chat("a")).status_code == 200
        answer = await gateway.chat("huge")
        assert answer.status_code == 503
        assert "it needs 9.0 GiB of 8.0 GiB" in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert gateway.starts() == ["a"]


Flags = Callable[[str], FlagFile]


def sized(scripted: Scripted, name: str, gib: int, **script: Any) -> Profile:
    return scripted(name, profile={"memory": gib * GIB}, **script)


async def test_the_least_recently_used_is_evicted_not_the_first_started(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    profiles = [sized(scripted, name, gib) for name, gib in (("a", 3), ("b", 3), ("c", 4))]
    async with running(EngineManager(profiles, SHARED)) as manager:
        address = await manager.switch("a")
        await manager.switch("b")
        await chat(address)
        await manager.switch("c")
        assert ready(manager) == ["a", "c"]


async def test_a_switch_to_a_running_model_counts_as_use(scripted: Scripted, running: Running, journal: Any) -> None:
    profiles = [sized(scripted, name, gib) for name, gib in (("a", 3), ("b", 3), ("c", 4))]
    async with running(EngineManager(profiles, SHARED)) as manager:
        await manager.switch("a")
        await manager.switch("b")
        await manager.switch("a")
        await manager.switch("c")
        assert ready(manager) == ["a", "c"]


async def test_a_busy_model_stays_while_an_idle_one_can_be_evicted(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    speak = flags("speak")
    profiles = [sized(scripted, "a", 3, answer_when=speak.path), sized(scripted, "b", 3), sized(scripted, "c", 4)]
    async with running(EngineManager(profiles, SHARED)) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(chat, await manager.switch("a"))
        await journal.until("request")
        await manager.switch("b")
        assert "draining" not in await phases(manager, "c")
        assert ready(manager) == ["a", "c"]
        speak.set()


async def test_busy_models_finish_before_they_are_evicted(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    speak = flags("speak")
    profiles = [sized(scripted, "a", 5, answer_when=speak.path), sized(scripted, "b", 5)]
    answers: list[str] = []
    async with running(EngineManager(profiles, SHARED)) as manager, anyio.create_task_group() as tasks:
        address = await manager.switch("a")

        async def ask() -> None:
            answers.append(await chat(address))

        tasks.start_soon(ask)
        await journal.until("request")
        received = await phases(manager, "b", lambda event: event.phase == "draining" and speak.set())
        assert received[0] == "draining"
        assert ready(manager) == ["b"]
    assert "word4" in answers[0]


async def test_a_stopping_model_is_waited_for_only_if_its_memory_is_needed(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    gone = flags("gone")
    profiles = [sized(scripted, "a", 3, gone_when=gone.path), sized(scripted, "b", 4), sized(scripted, "c", 4)]
    async with (
        running(EngineManager(profiles, msgspec.structs.replace(SHARED, stop_grace_s=60))) as manager,
        anyio.create_task_group() as tasks,
    ):
        await manager.switch("a")
        tasks.start_soon(manager.unload, "a")
        await journal.until("stop_requested")
        with anyio.fail_after(20):
            await manager.switch("b")
        tasks.start_soon(manager.switch, "c")
        await anyio.wait_all_tasks_blocked()
        assert (ready(manager), journal.events("start", "c")) == (["b"], [])
        gone.set()
    assert journal.kinds()[:4] == [("start", "a"), ("start", "b"), ("stop", "a"), ("start", "c")]


async def test_a_pinned_model_is_never_evicted(scripted: Scripted, running: Running, journal: Any) -> None:
    pinned = scripted("p", profile={"memory": 3 * GIB, "pinned": True})
    profiles = [pinned, sized(scripted, "a", 3), sized(scripted, "b", 4)]
    async with running(EngineManager(profiles, SHARED)) as manager:
        await manager.switch("p")
        await manager.switch("a")
        await manager.switch("b")
        assert ready(manager) == ["p", "b"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def loading(expected_s: float | None) -> tuple[Clock, SwitchOperation]:
    """A switch whose load begins at 0."""
    clock = Clock()
    switch = SwitchOperation("1", "a", (), expected_s=expected_s, publish=lambda _: None, clock=clock)
    switch.enter("loading")
    return clock, switch


@pytest.mark.parametrize("expected_s", [0.5, 3.0, 60.0, 300.0])
async def test_a_load_never_stands_at_its_last_percent(expected_s: float) -> None:
    clock, switch = loading(expected_s)
    stood_s, before = 0.0, 0.0
    while clock.now < 3 * expected_s + 10:
        percent = switch.event().percent
        if percent is not None and percent >= 98.5:
            stood_s += 0.1
        assert percent is None or percent >= before
        before = percent or before
        clock.now += 0.1
    assert stood_s < 1.5
    assert before > 90


async def test_past_its_estimate_a_load_is_overdue_and_has_none() -> None:
    clock, switch = loading(10.0)
    clock.now = 4.0
    assert (switch.event().percent, switch.event().eta_s, switch.event().overdue) == (40.0, 6.0, False)
    clock.now = 11.0
    assert (switch.event().percent, switch.event().eta_s, switch.event().overdue) == (None, 0.0, False)
    clock.now = 14.0
    assert (switch.event().percent, switch.event().eta_s, switch.event().overdue) == (None, None, True)
    assert switch.event().elapsed_s == 14.0


async def test_what_a_held_engine_does_is_not_loading() -> None:
    process: Any = SimpleNamespace(model="a", phase="preparing", progress=None, held=True)
    clock = Clock()
    switch = SwitchOperation("1", "a", (), expected_s=None, publish=lambda _: None, clock=clock)
    switch.enter("saving")
    switch.on_process_change(process)
    clock.now, process.held = 4.0, False
    switch.on_process_change(process)
    clock.now = 10.0
    switch.enter("loading")
    assert switch.phase_seconds == {"saving": 4.0, "starting": 6.0}


async def test_a_switch_is_over_once() -> None:
    published: list[SwitchMoved] = []
    address = EngineAddress(model="a", host="127.0.0.1", port=1, key="", generation=1, context=0, parallel=1)
    switch = SwitchOperation("1", "a", (), expected_s=None, publish=published.append)
    assert switch.succeed(address)
    switch.fail(Failure(kind="exited", message="too late"))
    switch.cancel(Failure(kind="cancelled", message="too late"))
    assert not switch.succeed(address)
    assert await switch.result.wait() == address
    assert [event.phase for event in published] == ["ready"]


async def test_a_first_load_has_the_time_so_far_alone() -> None:
    clock, switch = loading(None)
    clock.now = 14.0
    moved = switch.event()
    assert (moved.percent, moved.eta_s, moved.overdue, moved.elapsed_s) == (None, None, False, 14.0)
