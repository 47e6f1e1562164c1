"""The next model, prepared while others finish their answers: read ahead, or started beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from fakes.flag_file import FlagFile
from fakes.managers import states
from fakes.page_cache import cached_share, uncached_file, until_cached
from fakes.real_engine import post
from fakes.sized_models import START_EARLY, manager_of, sized
from system.running_gateway import first_token, gateway_starter

from bench.random_models import write_model
from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress, SupervisorError
from hostler.supervisor.engine_process import ManagedProcess
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB
from hostler.supervisor.slot_cache import SlotCache

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
Flags = Callable[[str], FlagFile]
MIB = 1024 * 1024


async def test_its_file_is_read_ahead(scripted: Scripted, running: Running, tmp_path: Path) -> None:
    file = uncached_file(tmp_path / "other.gguf", 32 * MIB)
    profiles = [scripted("a"), msgspec.structs.replace(scripted("b"), model=str(file))]
    async with running(EngineManager(profiles, SupervisorSettings())) as manager:
        await manager.prepare_next("b", start=True)
        await until_cached(file)
        assert states(manager) == {"a": "stopped", "b": "stopped"}


@pytest.mark.parametrize(("prepare_next", "free"), [("off", 100 * GIB), ("read", 16 * MIB)])
async def test_its_file_is_not_read_ahead(
    scripted: Scripted, running: Running, tmp_path: Path, prepare_next: Any, free: int
) -> None:
    file = uncached_file(tmp_path / "other.gguf", 32 * MIB)
    profile = msgspec.structs.replace(scripted("b"), model=str(file))
    settings = SupervisorSettings(prepare_next=prepare_next)
    async with running(manager_of(profile, settings=settings, free=free)) as manager:
        await manager.prepare_next("b", start=False)
        assert cached_share(file) < 0.1


async def test_what_running_engines_have_mapped_is_not_free(
    scripted: Scripted, running: Running, tmp_path: Path
) -> None:
    file = uncached_file(tmp_path / "other.gguf", 4 * MIB)
    profiles = [scripted("a"), msgspec.structs.replace(scripted("b"), model=str(file))]
    # An engine's own program is mapped as well, and is larger than the rest.
    async with running(manager_of(*profiles, settings=SupervisorSettings(), free=5 * MIB)) as manager:
        await manager.switch("a")
        await manager.prepare_next("b", start=False)
        assert cached_share(file) < 0.1
        await manager.unload("a")
        await manager.prepare_next("b", start=False)
        await until_cached(file)


async def test_it_starts_beside_the_one_that_will_stop(scripted: Scripted, running: Running, journal: Any) -> None:
    async with running(manager_of(sized(scripted, "a"), sized(scripted, "b"))) as manager:
        await manager.switch("a")
        await manager.prepare_next("b", start=True)
        assert states(manager) == {"a": "ready", "b": "ready"}
        await manager.switch("b", evict=["a"])
        assert states(manager) == {"a": "stopped", "b": "ready"}
    assert journal.kinds()[:3] == [("start", "a"), ("start", "b"), ("stop", "a")]


async def test_it_stops_if_it_is_not_needed_any_more(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    loaded = flags("loaded")
    profiles = [sized(scripted, "a"), sized(scripted, "b", ready_when=loaded.path)]
    async with running(manager_of(*profiles)) as manager, anyio.create_task_group() as tasks:
        await manager.switch("a")
        tasks.start_soon(lambda: manager.prepare_next("b", start=True))
        await journal.until("start", 2)
        await manager.prepare_next(None, start=False)
        await journal.until("stop")
        assert (await manager.switch("a")).model == "a"
    assert journal.kinds()[:3] == [("start", "a"), ("start", "b"), ("stop", "b")]


async def test_a_switch_takes_over_what_was_begun(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    loaded = flags("loaded")
    profiles = [sized(scripted, "a"), sized(scripted, "b", ready_when=loaded.path)]
    async with running(manager_of(*profiles)) as manager, anyio.create_task_group() as tasks:
        await manager.switch("a")
        tasks.start_soon(lambda: manager.prepare_next("b", start=True))
        await journal.until("start", 2)
        tasks.start_soon(lambda: manager.switch("b", evict=["a"]))
        await journal.until("stop")
        await manager.prepare_next(None, start=False)
        loaded.set()
        assert (await manager.switch("b")).model == "b"
    assert len(journal.events("start", "b")) == 1


async def test_its_failure_is_known_before_another_model_stops(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(manager_of(sized(scripted, "a"), sized(scripted, "b", exit_code=3))) as manager:
        await manager.switch("a")
        with pytest.raises(SupervisorError, match="exit code 3"):
            await manager.prepare_next("b", start=True)
        assert states(manager)["a"] == "ready"


async def saved(scripted: Scripted, tmp_path: Path, **script: Any) -> tuple[Profile, SlotCache, SupervisorSettings]:
    """The model "a", whose conversations are saved."""
    slots = tmp_path / "slots"
    facts = ModelFacts(architecture="llama", bytes=1, kv_bytes_per_token=1)
    cache = SlotCache(slots, max_bytes=1 << 20, max_age_s=60, min_tokens=4, read_facts=lambda _: facts)
    cache.prepare()
    return sized(scripted, "a", **script), cache, msgspec.structs.replace(START_EARLY, slots_dir=str(slots))


async def talk(address: EngineAddress) -> None:
    """A conversation that is long enough to be saved."""
    await post(address, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello. " * 20}]})


@pytest.fixture
async def saving(
    scripted: Scripted, running: Running, flags: Flags, tmp_path: Path
) -> AsyncIterator[tuple[EngineManager, FlagFile]]:
    """The model "a" after a conversation, beside "b", for which there is memory; once it is stopped, "a" is being saved until
    the flag is set."""
    written = flags("written")
    first, cache, settings = await saved(scripted, tmp_path, save_when=written.path)
    manager = EngineManager([first, sized(scripted, "b")], settings, slots=cache, free_memory=lambda: 100 * GIB)
    async with running(manager):
        await talk(await manager.switch("a"))
        yield manager, written


async def test_it_answers_while_the_other_one_is_still_saved(
    saving: tuple[EngineManager, FlagFile], journal: Any, tmp_path: Path
) -> None:
    manager, written = saving
    await talk(await manager.switch("b", evict=["a"]))
    assert [each["model"] for each in journal.events("save")] == ["a"]
    assert not list((tmp_path / "slots").glob("*.kv")), "the answer came before the conversation was written"
    assert states(manager) == {"a": "stopping", "b": "ready"}
    written.set()
    await journal.until("stop")
    assert journal.kinds()[:3] == [("start", "a"), ("start", "b"), ("stop", "a")]


async def test_it_stays_if_the_other_one_cannot_be_stopped(
    scripted: Scripted, running: Running, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves, failed, stop = anyio.Event(), anyio.Event(), ManagedProcess.stop

    async def stop_or_fail(process: ManagedProcess, *, sleep: bool = False) -> None:
        if process.model != "a":
            return await stop(process, sleep=sleep)
        await serves.wait()
        failed.set()
        raise OSError("broken disk")

    monkeypatch.setattr(ManagedProcess, "stop", stop_or_fail)
    async with running(manager_of(sized(scripted, "a"), sized(scripted, "b"))) as manager:
        await manager.switch("a")
        address = await manager.switch("b", evict=["a"])
        serves.set()
        await failed.wait()
        await anyio.wait_all_tasks_blocked()
        await talk(address)
        assert states(manager)["b"] == "ready"


@pytest.mark.parametrize("free", [100 * GIB, 1], ids=["beside", "held"])
@pytest.mark.parametrize("first", ["unload", "failure"])
async def test_it_can_be_unloaded_while_the_stop_of_the_other_one_fails(
    scripted: Scripted, running: Running, journal: Any, monkeypatch: pytest.MonkeyPatch, first: str, free: int
) -> None:
    stopping, fails, stop = anyio.Event(), anyio.Event(), ManagedProcess.stop

    async def stop_or_fail(process: ManagedProcess, *, sleep: bool = False) -> None:
        if process.model != "a":
            return await stop(process, sleep=sleep)
        stopping.set()
        await fails.wait()
        raise OSError("broken disk")

    monkeypatch.setattr(ManagedProcess, "stop", stop_or_fail)
    outcomes: list[str] = []

    async def want() -> None:
        with pytest.raises(SupervisorError) as refused:
            await manager.switch("b", evict=["a"])
        outcomes.append(refused.value.failure.kind)

    never = "/nonexistent/flag"
    async with running(manager_of(sized(scripted, "a"), sized(scripted, "b", ready_when=never), free=free)) as manager:
        await manager.switch("a")
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(want)
                await stopping.wait()
                if first == "unload":
                    tasks.start_soon(manager.unload, "b")
                    fails.set()
                else:
                    fails.set()
                    await manager.unload("b")
            assert outcomes in (["cancelled"], ["exited"])
            # Both can be used afterwards.
            assert (await manager.switch("a")).model == "a"
            monkeypatch.undo()
            await manager.unload("a")
        assert states(manager) == {"a": "stopped", "b": "stopped"}


async def test_without_room_it_starts_after_the_other_one_is_saved(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    first, cache, settings = await saved(scripted, tmp_path)
    manager = EngineManager([first, sized(scripted, "b")], settings, slots=cache, free_memory=lambda: 1)
    async with running(manager):
        await talk(await manager.switch("a"))
        await manager.switch("b", evict=["a"])
    assert journal.kinds()[:3] == [("start", "a"), ("stop", "a"), ("start", "b")]
    assert list((tmp_path / "slots").glob("*.kv"))


async def test_the_one_that_is_being_saved_comes_back_once_it_has_stopped(
    saving: tuple[EngineManager, FlagFile], journal: Any
) -> None:
    manager, written = saving
    async with anyio.create_task_group() as tasks:
        await manager.switch("b", evict=["a"])
        tasks.start_soon(lambda: manager.switch("a", evict=["b"]))
        await journal.until("save")
        written.set()
        await journal.until("start", 3)
        await talk(await manager.switch("a"))
    assert journal.kinds()[:3] == [("start", "a"), ("start", "b"), ("stop", "a")]
    assert len(journal.events("start", "b")) == 1


async def test_its_end_while_the_other_one_is_saved_costs_that_nothing(
    saving: tuple[EngineManager, FlagFile], journal: Any, tmp_path: Path
) -> None:
    manager, written = saving
    async with anyio.create_task_group() as tasks:
        await manager.switch("b", evict=["a"])
        pid = next(status.pid for status in manager.status_now().models if status.model == "b")
        psutil.Process(pid).kill()
        with anyio.fail_after(20):
            while states(manager)["b"] == "ready":  # noqa: ASYNC110 - what is waited for happens in another process
                await anyio.sleep(0.005)
        tasks.start_soon(lambda: manager.switch("b", evict=["a"]))
        await journal.until("save")
        written.set()
        await journal.until("start", 3)
        await talk(await manager.switch("b"))
        assert list((tmp_path / "slots").glob("*.kv"))


async def test_a_model_unloaded_while_the_other_one_is_saved_stays_stopped(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    gone = flags("gone")
    loaded = flags("loaded")
    profiles = [sized(scripted, "a", gone_when=gone.path), sized(scripted, "b", ready_when=loaded.path)]
    async with running(manager_of(*profiles)) as manager, anyio.create_task_group() as tasks:

        async def switch() -> None:
            with pytest.raises(SupervisorError, match="was unloaded"):
                await manager.switch("b", evict=["a"])

        await manager.switch("a")
        tasks.start_soon(switch)
        await journal.until("start", 2)
        await manager.unload("b")
        gone.set()
        await journal.until("stop", 2)
        assert (await manager.switch("a")).model == "a"
    assert len(journal.events("start", "b")) == 1


def scripted_and_embedded(scripted: Scripted, gone: FlagFile, tmp_path: Path) -> list[Profile]:
    """`a`, which ends once `gone` is set, and `b` of the embedded engine."""
    model = write_model(tmp_path / "b.gguf", "llama")
    return [
        sized(scripted, "a", gone_when=gone.path),
        Profile(name="b", model=str(model), engine="embedded", context=512),
    ]


async def until_holding(manager: EngineManager) -> None:
    """Wait until the engine of `b` holds before its weights."""
    async for line in manager.logs("b", follow=True):
        if line.startswith("holding"):
            break


@pytest.mark.engine
async def test_an_embedded_engine_holds_before_the_weights_while_the_other_one_stops(
    scripted: Scripted, running: Running, journal: Any, flags: Flags, tmp_path: Path
) -> None:
    gone = flags("gone")
    profiles = scripted_and_embedded(scripted, gone, tmp_path)
    settings = msgspec.structs.replace(START_EARLY, prepare_next="read")
    async with running(manager_of(*profiles, settings=settings)) as manager, anyio.create_task_group() as tasks:
        await manager.switch("a")
        tasks.start_soon(lambda: manager.switch("b", evict=["a"]))
        await until_holding(manager)
        assert states(manager) == {"a": "stopping", "b": "starting"}
        gone.set()
        address = await manager.switch("b", evict=["a"])
        assert (await post(address, "/completion", {"prompt": "a", "n_predict": 1}))["tokens_predicted"] == 1
        phases = next(status.phase_seconds for status in manager.status_now().models if status.model == "b")
        assert {"saving", "stopping"} <= phases.keys(), "what holds does not count as started"


@pytest.mark.engine
async def test_what_holds_ends_with_the_switch_that_began_it(
    scripted: Scripted, running: Running, journal: Any, flags: Flags, tmp_path: Path
) -> None:
    gone = flags("gone")
    profiles = scripted_and_embedded(scripted, gone, tmp_path)

    async def switch() -> None:
        with pytest.raises(SupervisorError, match="was unloaded"):
            await manager.switch("b", evict=["a"])

    settings = msgspec.structs.replace(START_EARLY, prepare_next="read")
    async with running(manager_of(*profiles, settings=settings)) as manager, anyio.create_task_group() as tasks:
        await manager.switch("a")
        tasks.start_soon(switch)
        await until_holding(manager)
        pid = next(status.pid for status in manager.status_now().models if status.model == "b")
        await manager.unload("b")
        assert states(manager)["b"] == "stopped"
        assert pid is not None
        assert not psutil.pid_exists(pid)
        gone.set()


@pytest.mark.engine
async def test_what_ends_while_it_holds_fails_its_switch_once(
    scripted: Scripted, running: Running, journal: Any, flags: Flags, tmp_path: Path
) -> None:
    gone = flags("gone")
    profiles = scripted_and_embedded(scripted, gone, tmp_path)

    async def switch() -> None:
        with pytest.raises(SupervisorError, match="killed by SIGKILL"):
            await manager.switch("b", evict=["a"])

    settings = msgspec.structs.replace(START_EARLY, prepare_next="read", max_failures=2, backoff_s=60)
    async with running(manager_of(*profiles, settings=settings)) as manager:
        await manager.switch("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(switch)
            await until_holding(manager)
            pid = next(status.pid for status in manager.status_now().models if status.model == "b")
            psutil.Process(pid).kill()
            with anyio.fail_after(20):
                while states(manager)["b"] == "starting":  # noqa: ASYNC110 - what is waited for happens in another process
                    await anyio.sleep(0.005)
            gone.set()
        assert states(manager) == {"a": "stopped", "b": "backoff"}
        assert (await manager.switch("b")).model == "b"


async def test_clients_get_the_next_model_while_the_last_answer_of_the_other_runs(tmp_path: Path, flags: Flags) -> None:
    last = flags("last")
    profiles = {"a": {"memory": "1MiB", "script": {"last_when": last.path}}, "b": {"memory": "1MiB"}}
    async with gateway_starter(tmp_path)(
        profiles, supervisor={"prepare_next": "start"}, gateway={"switching": {"patience_s": 0}}
    ) as gateway:
        async with gateway.stream("a") as answer:
            lines = await first_token(answer)
            assert (await gateway.chat("b")).status_code == 200
            assert not gateway.events("stop")
            last.set()
            assert "data: [DONE]" in [line async for line in lines]
        await gateway.until(lambda: [note["model"] for note in gateway.events("stop")] == ["a"])


async def test_a_model_comes_back_if_the_next_one_fails_while_it_is_stopped(tmp_path: Path) -> None:
    profiles = {"a": {"memory": "1MiB"}, "b": {"memory": "1MiB", "script": {"exit_code": 3}}}
    async with gateway_starter(tmp_path)(profiles, supervisor={"prepare_next": "start"}) as gateway:
        assert (await gateway.chat("a")).status_code == 200
        assert (await gateway.chat("b")).status_code == 503
        await gateway.until(lambda: gateway.starts().count("a") == 2)
        assert (await gateway.chat("a")).status_code == 200


async def test_a_missing_file_is_reported_while_another_model_still_answers(tmp_path: Path, flags: Flags) -> None:
    last = flags("last")
    profiles = {"a": {"script": {"last_when": last.path}}, "b": {"model": str(tmp_path / "gone.gguf")}}
    async with gateway_starter(tmp_path)(profiles) as gateway, gateway.stream("a") as answer:
        lines = await first_token(answer)
        assert (await gateway.chat("b")).status_code >= 400
        last.set()
        assert "data: [DONE]" in [line async for line in lines]
        assert not gateway.events("stop")
