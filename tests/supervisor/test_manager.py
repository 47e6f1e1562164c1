"""All models of a host together: contract, switches, failures, reloads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from fakes.flag_file import FlagFile
from fakes.managers import states

from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, SourceError
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    ModelChanged,
    Snapshot,
    Supervisor,
    SupervisorError,
    SwitchMoved,
    UnknownProfile,
)
from hostler.supervisor.engine_client import get_status
from hostler.supervisor.engine_lifecycle import EngineLifecycle
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB
from hostler.supervisor.model_files import FileDescription
from hostler.supervisor.state_store import StateFiles

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
Flags = Callable[[str], FlagFile]
EXCLUSIVE = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, max_backoff_s=0.4)
SHARED = msgspec.structs.replace(EXCLUSIVE, exclusive=False)


async def refusal(manager: EngineManager, model: str, evict: Sequence[str] = ()) -> Failure:
    with pytest.raises(SupervisorError) as refused:
        await manager.switch(model, evict=evict)
    return refused.value.failure


async def until(manager: EngineManager, model: str, state: str) -> None:
    """Wait until the manager publishes that `model` is in `state`."""
    with anyio.fail_after(20):
        async with manager.events() as events:
            async for event in events:
                if isinstance(event, Snapshot) and states(manager)[model] == state:
                    return
                if isinstance(event, ModelChanged) and (event.status.model, event.status.state) == (model, state):
                    return


def test_keeps_the_contract(scripted: Scripted) -> None:
    supervisor: Supervisor = EngineManager([scripted("a")], EXCLUSIVE)
    assert supervisor is not None


async def test_a_model_is_started_once_for_concurrent_requests(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    ready = flags("ready")
    async with running(EngineManager([scripted("a", ready_when=ready.path)], EXCLUSIVE)) as manager:
        addresses: list[EngineAddress] = []

        async def want() -> None:
            addresses.append(await manager.switch("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(want)
            tasks.start_soon(want)
            await journal.until("start")
            for _ in range(4):
                tasks.start_soon(want)
            await anyio.wait_all_tasks_blocked()
            ready.set()
        assert len(set(addresses)) == 1
        assert len(journal.events("start")) == 1
        [address] = set(addresses)
        assert await get_status(address.host, address.port, "/v1/models", timeout_s=2, key=address.key) == 200
        assert await manager.locate("a") == address


async def test_on_an_exclusive_host_the_old_model_is_gone_before_the_new_one_starts(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a", slow_exit=0.1), scripted("b")], EXCLUSIVE)) as manager:
        await manager.switch("a")
        await manager.switch("b")
        await manager.switch("a")
        assert states(manager) == {"a": "ready", "b": "stopped"}
    assert journal.kinds()[:5] == [("start", "a"), ("stop", "a"), ("start", "b"), ("stop", "b"), ("start", "a")]


async def test_two_switches_never_overlap_on_an_exclusive_host(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    names = ["a", "b", "c"]
    async with running(EngineManager([scripted(name, ready_after=0.1) for name in names], EXCLUSIVE)) as manager:
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(manager.switch, name)
        assert sorted(states(manager).values()) == ["ready", "stopped", "stopped"]
    alive = 0
    for event, _ in journal.kinds():
        alive += 1 if event == "start" else -1
        assert alive <= 1


async def test_models_that_may_run_together_load_side_by_side(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(
        EngineManager([scripted("a", ready_after=0.5), scripted("b", ready_after=0.5)], SHARED)
    ) as manager:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.switch, "a")
            tasks.start_soon(manager.switch, "b")
        assert states(manager) == {"a": "ready", "b": "ready"}
    starts = [event["time"] for event in journal.events("start")]
    assert max(starts) < min(event["time"] for event in journal.events("ready"))


async def test_models_named_by_the_gateway_are_stopped_first(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a"), scripted("b"), scripted("c")], SHARED)) as manager:
        await manager.switch("a")
        await manager.switch("b")
        await manager.switch("c", evict=["a"])
        assert states(manager) == {"a": "stopped", "b": "ready", "c": "ready"}
        await manager.switch("c", evict=["b"])
        assert states(manager) == {"a": "stopped", "b": "stopped", "c": "ready"}


async def test_the_hosts_own_policy_evicts_or_refuses(scripted: Scripted, running: Running, journal: Any) -> None:
    sizes = {"a": 3, "b": 3, "c": 4, "huge": 9}
    profiles = [scripted(name, profile={"memory": size * GIB}) for name, size in sizes.items()]
    async with running(
        EngineManager(profiles, msgspec.structs.replace(SHARED, memory_budget=Size(8 * GIB)))
    ) as manager:
        await manager.switch("a")
        await manager.switch("b")
        await manager.switch("c")
        assert states(manager) == {"a": "stopped", "b": "ready", "c": "ready", "huge": "stopped"}
        failure = await refusal(manager, "huge")
        assert failure.kind == "does_not_fit"
        assert failure.message.startswith("huge needs 9.0 GiB (declared); the budget is 8.0 GiB")
        assert states(manager)["c"] == "ready"


async def test_a_pinned_model_stays_beside_an_exclusive_one(scripted: Scripted, running: Running, journal: Any) -> None:
    profiles = [scripted("p", profile={"pinned": True}), scripted("a"), scripted("b")]
    async with running(EngineManager(profiles, EXCLUSIVE)) as manager:
        pinned = await manager.switch("p")
        await manager.switch("a")
        await manager.switch("b")
        assert states(manager) == {"p": "ready", "a": "stopped", "b": "ready"}
        assert await manager.switch("p") == pinned
        assert states(manager)["b"] == "ready"


@pytest.mark.parametrize("leased", [False, True])
async def test_a_model_that_is_kept_loaded_is_started_once_its_file_is_there(
    scripted: Scripted, running: Running, tmp_path: Path, leased: bool
) -> None:
    late = tmp_path / "late.gguf"
    missing = Failure(kind="file_missing", message="it does not exist")
    manager = EngineManager(
        [scripted("a"), scripted("b", profile={"preload": True})], SHARED,
        describe=lambda each: FileDescription(failure=missing if each.name == "a" and not late.exists() else None),
    )  # fmt: skip
    async with running(manager):
        await until(manager, "b", "ready")  # the last of the first starts
        if leased:
            await manager.add_lease("a", holder="ann", seconds=3600)
        else:
            await manager.pin("a", True)
        late.write_bytes(b"GGUF")
        await until(manager, "a", "ready")


async def test_a_cancelled_caller_leaves_the_switch_running(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    ready = flags("ready")
    async with running(EngineManager([scripted("a"), scripted("b", ready_when=ready.path)], EXCLUSIVE)) as manager:
        await manager.switch("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.switch, "b")
            await until(manager, "b", "starting")
            tasks.cancel_scope.cancel()
        ready.set()
        await until(manager, "b", "ready")
        assert states(manager) == {"a": "stopped", "b": "ready"}


async def test_a_slow_stop_delays_no_other_model(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    gone = flags("gone")
    settings = msgspec.structs.replace(SHARED, stop_grace_s=60)
    profiles = [scripted("a"), scripted("b", gone_when=gone.path), scripted("c")]
    async with running(EngineManager(profiles, settings)) as manager:
        await manager.switch("a")
        await manager.switch("b")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.unload, "b")
            await until(manager, "b", "stopping")
            with anyio.fail_after(20):
                await manager.switch("a")
                await manager.switch("c")
            assert states(manager)["b"] == "stopping"
            gone.set()


async def test_an_engine_that_ignores_signals_delays_a_switch_for_its_grace_period_only(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    settings = msgspec.structs.replace(EXCLUSIVE, stop_grace_s=1)
    async with running(EngineManager([scripted("a", ignore_stop=True), scripted("b")], settings)) as manager:
        await manager.switch("a")
        ordered = time.time()
        await manager.switch("b")
        assert journal.events("start", "b")[-1]["time"] - ordered >= 1.0


async def test_unloading_a_loading_model_and_requesting_it_again_succeeds(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    ready, gone = flags("ready"), flags("gone")
    settings = msgspec.structs.replace(EXCLUSIVE, stop_grace_s=60)
    profile = scripted("a", ready_when=ready.path, gone_when=gone.path)
    async with running(EngineManager([profile], settings)) as manager:
        outcomes: list[object] = []

        async def first() -> None:
            outcomes.append((await refusal(manager, "a")).kind)

        async def second() -> None:
            outcomes.append((await manager.switch("a")).generation)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await journal.until("start")
            tasks.start_soon(manager.unload, "a")
            await until(manager, "a", "stopping")
            tasks.start_soon(second)
            await anyio.wait_all_tasks_blocked()
            ready.set()
            gone.set()
        assert outcomes == ["cancelled", 2]


async def test_unloading_a_waiting_model_cancels_only_its_switch(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    ready = flags("ready")
    async with running(EngineManager([scripted("a", ready_when=ready.path), scripted("b")], EXCLUSIVE)) as manager:
        outcomes: list[str] = []

        async def want(model: str) -> None:
            try:
                outcomes.append((await manager.switch(model)).model)
            except SupervisorError as error:
                outcomes.append(error.failure.kind)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(want, "a")
            await until(manager, "a", "starting")
            tasks.start_soon(want, "b")
            await anyio.wait_all_tasks_blocked()
            await manager.unload("b")
            ready.set()
        assert outcomes == ["cancelled", "a"]
        assert journal.events("start", "b") == []


async def test_unloading_cancels_every_switch_to_the_model(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    ready = flags("ready")
    profiles = [scripted("a", ready_when=ready.path), scripted("b"), scripted("c")]
    async with running(EngineManager(profiles, EXCLUSIVE)) as manager:
        outcomes: list[str] = []

        async def want(evict: list[str]) -> None:
            outcomes.append((await refusal(manager, "b", evict)).kind)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.switch, "a")
            await until(manager, "a", "starting")
            # The second one evicts more than the first: it cannot join it.
            for evict in ([], ["c"]):
                tasks.start_soon(want, evict)
                await anyio.wait_all_tasks_blocked()
            await manager.unload("b")
            ready.set()
        assert outcomes == ["cancelled", "cancelled"]
        assert journal.events("start", "b") == []


async def test_a_model_stops_whatever_goes_wrong_while_it_is_saved(
    scripted: Scripted, running: Running, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def save_slots(lifecycle: EngineLifecycle, address: object) -> None:
        raise OSError("broken disk")

    monkeypatch.setattr(EngineLifecycle, "save_slots", save_slots)
    async with running(EngineManager([scripted("a"), scripted("b")], EXCLUSIVE)) as manager:
        with anyio.fail_after(20):
            await manager.switch("a")
            await manager.unload("a")
            await manager.switch("a")
            await manager.switch("b")
        assert states(manager) == {"a": "stopped", "b": "ready"}


async def test_a_failed_load_has_its_reason(scripted: Scripted, running: Running, journal: Any) -> None:
    line = "0.00.003.960 E gguf_init_from_file: failed to open GGUF file '/x.gguf' (No such file or directory)"
    async with running(EngineManager([scripted("a", exit_code=1, stderr=line)], EXCLUSIVE)) as manager:
        failure = await refusal(manager, "a")
        assert failure.kind == "file_missing"
        assert "/x.gguf" in failure.message
        await until(manager, "a", "backoff")
        [status] = manager.status_now().models
        assert status.failure is not None
        assert [text async for text in manager.logs("a")] == [line]


async def test_a_failed_download_does_not_cost_the_running_model(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async def prepare(profile: Profile, report: object) -> Path:
        if profile.name == "far":
            raise SourceError("far away")
        return Path(profile.model)

    async with running(EngineManager([scripted("a"), scripted("far")], EXCLUSIVE, prepare=prepare)) as manager:
        await manager.switch("a")
        failure = await refusal(manager, "far")
        assert (failure.kind, failure.message) == ("source_unavailable", "far away")
        assert states(manager)["a"] == "ready"


async def test_an_unknown_name_is_an_error_that_lists_the_known_ones(scripted: Scripted, running: Running) -> None:
    async with running(EngineManager([scripted("a")], EXCLUSIVE)) as manager:
        with pytest.raises(UnknownProfile, match=r'"x".* a'):
            await manager.switch("x")
        with pytest.raises(UnknownProfile):
            await manager.locate("x")


@pytest.mark.parametrize("router_child", [False, True])
async def test_a_switch_publishes_each_phase(
    scripted: Scripted, running: Running, journal: Any, flags: Flags, router_child: bool
) -> None:
    ready = flags("ready")
    async with running(
        EngineManager([scripted("a"), scripted("b", ready_when=ready.path, router_child=router_child)], EXCLUSIVE)
    ) as manager:
        await manager.switch("a")
        moves: list[SwitchMoved] = []
        async with manager.events() as events:
            assert isinstance(await anext(events), Snapshot)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(manager.switch, "b")
                async for event in events:
                    if isinstance(event, SwitchMoved):
                        moves.append(event)
                        if event.phase == "loading" and moves[-2].phase != "loading":
                            await anyio.sleep(0.1)  # not to wait for something: so long does it load
                            ready.set()
                        if event.phase == "ready":
                            break
        phases = [move.phase for move in moves]
        assert list(dict.fromkeys(phases)) == ["saving", "stopping", "starting", "loading", "restoring", "ready"]
        assert {move.from_models for move in moves} == {("a",)}
        assert len({move.id for move in moves}) == 1
        last = moves[-1]
        assert last.percent == 100
        assert set(last.phase_seconds) >= {"saving", "stopping", "starting", "loading", "restoring"}
        assert last.phase_seconds["loading"] >= 0.1
        # Only a wait before the first phase that takes less than a millisecond is no phase.
        assert 0 <= last.elapsed_s - sum(last.phase_seconds.values()) + 1e-9 < 0.001
        assert manager.status_now().models[1].phase_seconds == pytest.approx(last.phase_seconds, abs=1e-5)


async def test_a_download_is_a_phase_with_its_own_progress(scripted: Scripted, running: Running, journal: Any) -> None:
    seen = anyio.Event()

    async def prepare(profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
        if profile.name == "far" and not seen.is_set():
            report(FetchProgress(file="far.gguf", phase="downloading", completed=25, total=100))
            await seen.wait()
            report(FetchProgress(file="far.gguf", phase="done", completed=100, total=100))
        return Path(profile.model)

    async with running(EngineManager([scripted("a"), scripted("far")], EXCLUSIVE, prepare=prepare)) as manager:
        await manager.switch("a")
        moves: list[SwitchMoved] = []
        async with manager.events() as events, anyio.create_task_group() as tasks:
            tasks.start_soon(manager.switch, "far")
            async for event in events:
                if isinstance(event, SwitchMoved):
                    moves.append(event)
                    if event.phase == "ready":
                        break
                    if event.percent == 25:
                        # Meanwhile the other one serves.
                        assert states(manager)["a"] == "ready"
                        seen.set()
        assert list(dict.fromkeys(move.phase for move in moves))[:3] == ["fetching", "saving", "stopping"]
        assert moves[-1].phase_seconds["fetching"] > 0


async def test_load_times_are_remembered_and_make_an_eta(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "load-times.json"
    profiles = [scripted("a", ready_after=0.2)]
    async with running(EngineManager(profiles, EXCLUSIVE, state=StateFiles(load_times=file))) as manager:
        began = time.monotonic()
        await manager.switch("a")
        took = time.monotonic() - began
        with anyio.fail_after(20):
            while not file.exists():
                await anyio.lowlevel.checkpoint()
    async with running(EngineManager(profiles, EXCLUSIVE, state=StateFiles(load_times=file))) as manager:
        [info] = manager.status_now().profiles
        assert info.load_s is not None
        assert 0.2 <= info.load_s <= round(took, 3)  # as that is rounded
        async with manager.events() as events, anyio.create_task_group() as tasks:
            tasks.start_soon(manager.switch, "a")
            first = await anext(event async for event in events if isinstance(event, SwitchMoved))
            assert first.eta_s is not None
            assert 0 <= first.eta_s <= info.load_s


async def test_unchanged_profiles_keep_their_engines_and_changed_ones_lose_them(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a"), scripted("b"), scripted("c")], SHARED)) as manager:
        kept = await manager.switch("a")
        for name in ("b", "c"):
            await manager.switch(name)
        described = scripted("a", profile={"description": "other words", "aliases": ("first",)})
        fresh = [described, scripted("b", profile={"context": 2048}), scripted("d")]
        assert manager.outdated(fresh) == ("b", "c")
        await manager.replace_profiles(fresh)
        assert states(manager) == {"a": "ready", "b": "stopped", "d": "stopped"}
        assert await manager.switch("a") == kept
        assert manager.status_now().profiles[0].aliases == ("first",)
        assert (await manager.switch("b")).context == 2048
        await manager.switch("d")
        with pytest.raises(UnknownProfile):
            await manager.switch("c")


async def test_unloading_resets_the_failures_of_a_model(scripted: Scripted, running: Running, journal: Any) -> None:
    settings = msgspec.structs.replace(EXCLUSIVE, backoff_s=60, max_backoff_s=60)
    async with running(EngineManager([scripted("a", exit_code=1, exit_times=3)], settings)) as manager:
        for _ in range(3):
            await refusal(manager, "a")
        assert (await refusal(manager, "a")).retry_after_s
        await manager.unload("a")
        await manager.switch("a")


async def test_followed_logs_go_on_over_a_restart(scripted: Scripted, running: Running, journal: Any) -> None:
    async with running(EngineManager([scripted("a", stderr="hello")], EXCLUSIVE)) as manager:
        seen: list[str] = []
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                async for line in manager.logs("a", follow=True):
                    seen.append(line)
                    if seen.count("hello") == 2:
                        return

            tasks.start_soon(follow)
            await manager.switch("a")
            await manager.unload("a")
            await manager.switch("a")


async def test_cancelling_ends_all_engines_side_by_side(
    scripted: Scripted, running: Running, journal: Any, flags: Flags
) -> None:
    gone = flags("gone")
    profiles = [scripted(name, gone_when=gone.path) for name in ("a", "b", "c")]

    async def let_them_go() -> None:
        await journal.until("stop_requested", 3)
        gone.set()

    async with anyio.create_task_group() as tasks, running(EngineManager(profiles, SHARED)) as manager:
        for profile in profiles:
            await manager.switch(profile.name)
        tasks.start_soon(let_them_go)
    assert [event["code"] for event in journal.events("stop")] == [0, 0, 0]


async def test_a_killed_engine_is_started_again_for_the_next_request(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    async with running(EngineManager([scripted("a")], EXCLUSIVE)) as manager:
        await manager.switch("a")
        [pid] = journal.pids()
        os.kill(pid, 9)
        await until(manager, "a", "stopped")
        assert (await manager.switch("a")).generation == 2


async def test_an_unreadable_file_costs_its_own_model_only(scripted: Scripted, running: Running) -> None:
    def describe(profile: Profile) -> FileDescription:
        if profile.name == "b":
            raise PermissionError(13, "Permission denied")
        return FileDescription(size=7)

    async def prepare(profile: Profile, _: Callable[[FetchProgress], None]) -> Path:
        if profile.name == "b":
            raise PermissionError(13, "Permission denied")
        return Path(profile.model)

    profiles = [scripted("b"), scripted("a")]
    async with running(EngineManager(profiles, EXCLUSIVE, prepare=prepare, describe=describe)) as manager:
        refused = await refusal(manager, "b")
        assert (refused.kind, "Permission denied" in refused.message) == ("source_unavailable", True)
        await manager.switch("a")
        await manager.replace_profiles(profiles)
        assert [profile.size for profile in manager.status_now().profiles] == [0, 7]


async def test_a_file_that_was_damaged_meanwhile_costs_the_running_model_nothing(
    scripted: Scripted, running: Running, journal: Any
) -> None:
    damaged: list[str] = []

    def describe(profile: Profile) -> FileDescription:
        failure = Failure(kind="model_damaged", message="the file is cut off") if profile.name in damaged else None
        return FileDescription(size=1, modified_at=1.0, failure=failure)

    async with running(EngineManager([scripted("a"), scripted("b")], EXCLUSIVE, describe=describe)) as manager:
        await manager.switch("a")
        damaged.append("b")
        assert (await refusal(manager, "b", evict=["a"])).message == "the file is cut off"
        assert states(manager)["a"] == "ready"
    assert [event["model"] for event in journal.events("start")] == ["a"]
