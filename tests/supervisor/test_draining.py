"""Who has to go when nobody said who, and how: the longest unused first, and never in the middle of an answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from fakes.gate import Gate

from hostler.profiles.schema import Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress, Snapshot, SwitchMoved
from hostler.supervisor.engine_client import EngineActivity, engine_activity
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB

pytestmark = pytest.mark.anyio

Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
Gates = Callable[[str], Gate]

EXCLUSIVE = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, drain_s=60)
SHARED = msgspec.structs.replace(EXCLUSIVE, memory_budget=Size(8 * GIB))


def sized(scripted: Scripted, name: str, gib: int, **script: Any) -> Profile:
    return scripted(name, profile={"memory": gib * GIB}, **script)


def ready(manager: EngineManager) -> list[str]:
    return [status.model for status in manager.status_now().models if status.state == "ready"]


async def chat(address: EngineAddress) -> str:
    """What its clients do: ask the engine itself."""
    headers = {"Authorization": f"Bearer {address.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
        url = f"http://{address.host}:{address.port}/v1/chat/completions"
        return (await http.post(url, json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16})).text


async def cut_off(address: EngineAddress) -> None:
    """Ask, and get no end of the answer."""
    with pytest.raises(httpx.TransportError):
        await chat(address)


async def phases(manager: EngineManager, model: str, on: Callable[[SwitchMoved], object] = lambda _: None) -> list[str]:
    """Switch to it; what was told meanwhile."""
    told: list[str] = []
    async with manager.events() as events, anyio.create_task_group() as tasks:
        assert isinstance(await anext(events), Snapshot)
        tasks.start_soon(manager.switch, model)
        async for event in events:
            if isinstance(event, SwitchMoved):
                told.append(event.phase)
                on(event)
                if event.phase in ("ready", "failed"):
                    break
    return list(dict.fromkeys(told))


async def test_the_longest_unused_makes_room_not_the_first_that_was_started(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    profiles = [sized(scripted, name, gib) for name, gib in (("a", 3), ("b", 3), ("c", 4))]
    async with running(EngineManager(profiles, SHARED)) as manager:
        address = await manager.switch("a")
        await manager.switch("b")
        await chat(address)
        await manager.switch("c")
        assert ready(manager) == ["a", "c"]


async def test_an_order_for_a_model_that_runs_is_a_use_of_it(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    profiles = [sized(scripted, name, gib) for name, gib in (("a", 3), ("b", 3), ("c", 4))]
    async with running(EngineManager(profiles, SHARED)) as manager:
        await manager.switch("a")
        await manager.switch("b")
        await manager.switch("a")
        await manager.switch("c")
        assert ready(manager) == ["a", "c"]


async def test_one_that_is_at_work_stays_as_long_as_an_idle_one_can_go(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    speak = gates("speak")
    profiles = [sized(scripted, "a", 3, answer_when=speak.path), sized(scripted, "b", 3), sized(scripted, "c", 4)]
    async with running(EngineManager(profiles, SHARED)) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(chat, await manager.switch("a"))
        await journal.until("request")
        await manager.switch("b")
        assert "draining" not in await phases(manager, "c")
        assert ready(manager) == ["a", "c"]
        speak.open()


async def test_if_all_are_at_work_they_finish_before_they_make_room(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    speak = gates("speak")
    profiles = [sized(scripted, "a", 5, answer_when=speak.path), sized(scripted, "b", 5)]
    answers: list[str] = []
    async with running(EngineManager(profiles, SHARED)) as manager, anyio.create_task_group() as tasks:
        address = await manager.switch("a")

        async def ask() -> None:
            answers.append(await chat(address))

        tasks.start_soon(ask)
        await journal.until("request")
        told = await phases(manager, "b", lambda event: event.phase == "draining" and speak.open())
        assert told[0] == "draining"
        assert ready(manager) == ["b"]
    assert "word4" in answers[0]


async def test_a_model_on_its_way_out_is_waited_for_only_if_its_room_is_needed(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    gone = gates("gone")
    profiles = [sized(scripted, "a", 3, gone_when=gone.path), sized(scripted, "b", 4), sized(scripted, "c", 4)]
    async with (
        running(EngineManager(profiles, msgspec.structs.replace(SHARED, stop_grace_s=60))) as manager,
        anyio.create_task_group() as tasks,
    ):
        await manager.switch("a")
        tasks.start_soon(manager.unload, "a")
        await journal.until("told")
        with anyio.fail_after(20):
            await manager.switch("b")
        tasks.start_soon(manager.switch, "c")
        await anyio.wait_all_tasks_blocked()
        assert (ready(manager), journal.events("start", "c")) == (["b"], [])
        gone.open()
    assert journal.kinds()[:4] == [("start", "a"), ("start", "b"), ("stop", "a"), ("start", "c")]


async def test_a_pinned_model_never_makes_room(scripted: Scripted, running: Running, journal: Any) -> None:
    pinned = scripted("p", profile={"memory": 3 * GIB, "pinned": True})
    profiles = [pinned, sized(scripted, "a", 3), sized(scripted, "b", 4)]
    async with running(EngineManager(profiles, SHARED)) as manager:
        await manager.switch("p")
        await manager.switch("a")
        await manager.switch("b")
        assert ready(manager) == ["p", "b"]


async def test_an_exclusive_host_lets_the_old_model_finish_and_says_so(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    last = gates("last")
    answers: list[str] = []
    async with (
        running(EngineManager([scripted("a", last_when=last.path), scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        address = await manager.switch("a")

        async def ask() -> None:
            answers.append(await chat(address))

        def let_it_finish(event: SwitchMoved) -> None:
            if event.phase == "draining":
                # All the while it serves.
                assert (event.from_models, ready(manager)) == (("a",), ["a"])
                last.open()

        tasks.start_soon(ask)
        await journal.until("request")
        told = await phases(manager, "b", let_it_finish)
        assert told == ["draining", "saving", "stopping", "starting", "loading", "restoring", "ready"]
        assert manager.status_now().models[1].phase_seconds["draining"] > 0
    assert "word4" in answers[0]


async def test_a_model_whose_profile_was_changed_finishes_its_answer(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    last = gates("last")
    answers: list[str] = []
    async with running(EngineManager([scripted("a", last_when=last.path)], EXCLUSIVE)) as manager:
        address = await manager.switch("a")

        async def ask() -> None:
            answers.append(await chat(address))

        async def finish() -> None:
            # It is asked whether it is at work before it is stopped.
            await journal.until("request", 2)
            last.open()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await journal.until("request")
            tasks.start_soon(finish)
            await manager.replace_profiles([scripted("a", profile={"context": 512})])
            assert manager.status_now().models[0].state == "stopped"
    assert "word4" in answers[0]


async def test_what_the_gateway_has_drained_is_not_waited_for(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    async with (
        running(EngineManager([scripted("a", last_when=gates("never").path), scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(cut_off, await manager.switch("a"))
        await journal.until("request")
        await manager.switch("b", evict=["a"])
        # Nor is it asked anything, which would take time.
        assert not [event for event in journal.events("request", "a") if event["path"] == "/metrics"]


async def test_patience_with_a_long_answer_has_an_end(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    profile = scripted("a", last_when=gates("never").path, profile={"drain_s": 0.2})
    async with (
        running(EngineManager([profile, scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(cut_off, await manager.switch("a"))
        await journal.until("request")
        # Else it would be waited for for ever.
        with anyio.fail_after(30):
            await manager.switch("b")


async def test_an_engine_that_ends_while_it_is_waited_for_is_waited_for_no_more(
    scripted: Scripted, running: Running, journal: Any, gates: Gates
) -> None:
    async with (
        running(EngineManager([scripted("a", last_when=gates("never").path), scripted("b")], EXCLUSIVE)) as manager,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(cut_off, await manager.switch("a"))
        await journal.until("request")
        with anyio.fail_after(30):
            await phases(
                manager, "b", lambda event: event.phase == "draining" and tasks.start_soon(manager.unload, "a")
            )


async def test_an_engine_that_does_not_say_what_it_does_is_waited_for_by_nobody() -> None:
    nowhere = EngineAddress(model="a", host="127.0.0.1", port=1, key="", generation=1, context=1, parallel=1)
    assert await engine_activity(nowhere) is None


async def test_one_that_says_nothing_in_time_counts_as_busy() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as deaf:
        port = deaf.extra(anyio.abc.SocketAttribute.local_port)
        address = EngineAddress(model="a", host="127.0.0.1", port=port, key="", generation=1, context=1, parallel=1)
        assert await engine_activity(address, timeout_s=0.1) == EngineActivity(requests=1)


@pytest.mark.engine
@pytest.mark.timeout(180)
async def test_the_real_engine_says_whether_it_is_at_work(real_model: Path, running: Running, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    profile = Profile(name="a", model=str(real_model), engine="embedded", context=2048, threads=1)
    async with running(EngineManager([profile], EXCLUSIVE)) as manager:
        address = await manager.switch("a")
        assert await engine_activity(address) == EngineActivity(requests=0, work_done=0)
        told: list[EngineActivity | None] = []
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                await chat(address)
                tasks.cancel_scope.cancel()

            tasks.start_soon(ask)
            while True:
                told.append(await engine_activity(address, timeout_s=10))
                await anyio.sleep(0.02)
        after = await engine_activity(address)
        assert any(each is not None and each.requests == 1 for each in told)
        assert after is not None
        assert (after.requests, after.work_done > 16) == (0, True)
