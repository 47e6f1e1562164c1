"""How much memory an engine takes: estimates, measurements, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.memory_meter import FakeMemoryMeter
from msgspec.structs import replace

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.manager import EngineManager, create_manager
from hostler.supervisor.memory import (
    GIB,
    MIB,
    PROCESS_BYTES,
    MemoryHistory,
    MemoryUsage,
    PeakMemory,
    does_not_fit,
    memory_need,
    offloaded_share,
    update_peak,
)
from hostler.supervisor.model_files import FileDescription
from hostler.supervisor.state_store import StateFiles

PROFILE = Profile(name="qwen3-8b", model="/m.gguf", context=32768)
FACTS = ModelFacts(
    architecture="qwen3",
    bytes=5 * GIB,
    kv_bytes_per_token=131072,
    embedding_length=4096,
    metadata={"qwen3.vocab_size": 151936},
)


WORKING = 4 * 512 * (151936 + 12 * 4096)


def test_adds_weights_cache_and_the_rest() -> None:
    wanted = memory_need(PROFILE, FACTS)
    assert (wanted.weights, wanted.cache, wanted.other) == (5 * GIB, 4 * GIB, PROCESS_BYTES + WORKING)
    assert wanted.total == 9 * GIB + PROCESS_BYTES + WORKING


@pytest.mark.parametrize(
    ("change", "cache"),
    [
        ({"parallel": 2}, 8 * GIB),
        ({"context": 8192}, GIB),
        ({"args": ("-c", "16384")}, 2 * GIB),
        ({"args": ("-ctk", "q8_0", "-ctv", "q8_0")}, 4 * GIB * 34 // 64),
        ({"args": ("--cache_type-k", "q8_0")}, (4 * GIB + 4 * GIB * 34 // 64) // 2),
        ({"args": ("-ctk", "q8_0", "-ctk", "f16")}, 4 * GIB),
        ({"args": ("-ctk",)}, 4 * GIB),
    ],
)
def test_the_cache_grows_with_what_it_holds(change: dict[str, Any], cache: int) -> None:
    assert memory_need(replace(PROFILE, **change), FACTS).cache == cache


def test_counts_the_prompt_cache_in_memory_and_the_batch() -> None:
    plain = memory_need(PROFILE, FACTS).other
    assert memory_need(replace(PROFILE, cache_ram_mib=1024), FACTS).other == plain + GIB
    assert memory_need(replace(PROFILE, args=("-ub", "256")), FACTS).other == PROCESS_BYTES + WORKING // 2


def test_a_declared_size_overrides_everything() -> None:
    assert memory_need(replace(PROFILE, memory=7), FACTS, PeakMemory(rss=9 * GIB, settled=True)).total == 7


def test_a_file_without_a_header_takes_at_least_its_process() -> None:
    assert memory_need(PROFILE, None).total == PROCESS_BYTES


def test_a_measurement_raises_the_estimate_at_once_and_lowers_it_after_a_response() -> None:
    assert memory_need(PROFILE, FACTS, PeakMemory(rss=20 * GIB)).total == 20 * GIB
    assert memory_need(PROFILE, FACTS, PeakMemory(rss=6 * GIB)).total == memory_need(PROFILE, FACTS).total
    assert memory_need(PROFILE, FACTS, PeakMemory(rss=int(9.1 * GIB), settled=True)).total == int(9.1 * GIB)
    assert memory_need(PROFILE, FACTS, PeakMemory(settled=True)).total == memory_need(PROFILE, FACTS).total


def test_resident_memory_never_lowers_a_need_below_weights_and_cache() -> None:
    """What an engine keeps on a GPU that cannot be read is in no measurement."""
    need = memory_need(PROFILE, FACTS, PeakMemory(rss=GIB // 10, settled=True))
    assert (need.total, need.weights, need.cache, need.other) == (9 * GIB, 5 * GIB, 4 * GIB, 0)


def test_a_reading_of_a_gpu_lowers_a_need_except_for_layers_in_memory() -> None:
    half = replace(PROFILE, gpu_layers=16)
    facts = replace(FACTS, blocks=31)
    peak = PeakMemory(rss=GIB, gpu=3 * GIB, settled=True)
    assert memory_need(PROFILE, facts, peak).total == 3 * GIB
    assert memory_need(half, facts, peak).total == 3 * GIB + 9 * GIB // 2


def test_the_file_counts_where_it_has_no_header() -> None:
    assert memory_need(PROFILE, None, PeakMemory(rss=MIB, settled=True), size=2 * GIB).total == 2 * GIB
    assert memory_need(PROFILE, None, size=2 * GIB).total == 2 * GIB + PROCESS_BYTES


@pytest.mark.parametrize(
    ("layers", "blocks", "share"),
    [(None, 31, 1.0), ("all", 31, 1.0), (0, 31, 0.0), (8, 31, 0.25), (99, 31, 1.0), (9, 0, 1.0)],
)
def test_the_offloaded_share_follows_the_number_of_layers(layers: int | str | None, blocks: int, share: float) -> None:
    profile = replace(PROFILE, gpu_layers=layers)
    assert offloaded_share(profile, replace(FACTS, blocks=blocks)) == share


def test_memory_of_the_gpu_counts_where_there_is_any() -> None:
    assert memory_need(PROFILE, FACTS, PeakMemory(rss=20 * GIB, gpu=8 * GIB, settled=True)).total == 8 * GIB


def test_peaks_only_grow() -> None:
    peak = update_peak(None, MemoryUsage(rss=5, gpu=1))
    peak = update_peak(peak, MemoryUsage(rss=3, gpu=2), settled=True)
    assert update_peak(peak, MemoryUsage()) == PeakMemory(rss=5, gpu=2, settled=True)


def test_a_model_that_can_never_fit_is_refused_with_the_sum() -> None:
    failure = does_not_fit(PROFILE, memory_need(PROFILE, FACTS), 8 * GIB)
    assert failure.kind == "does_not_fit"
    assert failure.message.startswith(
        "qwen3-8b needs 9.4 GiB (5.0 weights + 4.0 cache + 0.4 other); the budget is 8.0 GiB: raise memory_budget"
    )
    assert "context" in failure.message
    declared = does_not_fit(PROFILE, memory_need(replace(PROFILE, memory=9 * GIB), FACTS), 8 * GIB)
    assert declared.message == (
        "qwen3-8b needs 9.0 GiB (declared); the budget is 8.0 GiB: raise memory_budget, or use a smaller quantization"
    )


pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
SHARED = SupervisorSettings(memory_budget=Size(8 * GIB))
ESTIMATED = FileDescription(facts=ModelFacts(bytes=2 * GIB), size=7, modified_at=1.0)


def manager_of(
    profile: Profile, file: Path, usage: MemoryUsage, described: FileDescription = ESTIMATED
) -> EngineManager:
    meter: Any = FakeMemoryMeter(usage)
    return EngineManager([profile], SHARED, meter=meter, describe=lambda _: described, state=StateFiles(memory=file))


async def need(manager: EngineManager) -> int:
    """The expected memory, once the file has been described."""
    async with manager.events() as events:
        await anext(events)
    return manager.status_now().profiles[0].memory_bytes


@pytest.mark.parametrize(
    "usage", [MemoryUsage(rss=3 * GIB), MemoryUsage(rss=5 * GIB), MemoryUsage(rss=GIB, gpu=4 * GIB)]
)
async def test_measurements_count_after_a_restart(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path, usage: MemoryUsage
) -> None:
    file = tmp_path / "state" / "footprints.json"
    async with running(manager_of(scripted("a"), file, usage)) as manager:
        address = await manager.switch("a")
        await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
    seen = usage.gpu or usage.rss
    async with running(manager_of(scripted("a"), file, usage)) as manager:
        assert await need(manager) == seen
        await manager.replace_profiles([scripted("a", profile={"description": "other words"})])
        assert await need(manager) == seen
        # Measurements of another command do not count.
        await manager.replace_profiles([scripted("a", profile={"context": 512})])
        assert await need(manager) > 2 * GIB
    replaced = FileDescription(facts=ModelFacts(bytes=2 * GIB), size=8, modified_at=2.0)
    async with running(manager_of(scripted("a"), file, usage, replaced)) as manager:
        assert await need(manager) > 2 * GIB


async def test_a_current_measurement_overrides_a_remembered_one(
    scripted: Scripted, running: Running, journal: Any, tmp_path: Path
) -> None:
    file = tmp_path / "footprints.json"
    for usage, before in ((MemoryUsage(rss=6 * GIB), 0), (MemoryUsage(rss=3 * GIB), 6 * GIB)):
        async with running(manager_of(scripted("a"), file, usage)) as manager:
            address = await manager.switch("a")
            if before:
                async with manager.events() as events:
                    async for _ in events:
                        if manager.status_now().models[0].memory_bytes:
                            break
                # Engines take their memory while they work: it has not responded yet.
                assert await need(manager) == before
            await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
            assert await need(manager) == usage.rss


async def test_a_damaged_file_counts_as_missing(tmp_path: Path, scripted: Scripted, running: Running) -> None:
    file = tmp_path / "footprints.json"
    for damage in (b'{"\xff": 1}', b"[]", b'{"a": {"key": 1}}', b'{"a": ' * 100_000, b""):
        file.write_bytes(damage)
        async with running(manager_of(scripted("a"), file, MemoryUsage())) as manager:
            assert await need(manager) > 2 * GIB


def test_only_differences_are_written(tmp_path: Path) -> None:
    known = MemoryHistory(tmp_path / "footprints.json")
    seen = PeakMemory(rss=1000, settled=True)
    assert known.record("a", "k", seen)
    assert not known.record("a", "k", PeakMemory(rss=1001, settled=True))
    assert known.record("a", "k", PeakMemory(rss=2000, settled=True))
    known.write()
    again = MemoryHistory(tmp_path / "footprints.json")
    again.read()
    assert again.get("a", "k") == PeakMemory(rss=2000, settled=True)
    assert again.get("a", "other") is None
    assert [path.name for path in tmp_path.iterdir()] == ["footprints.json"]


async def test_a_host_keeps_the_memory_history_beside_the_load_times(
    tmp_path: Path, scripted: Scripted, running: Running
) -> None:
    environ = {"HOSTLER_CACHE": str(tmp_path / "cache")}
    async with running(create_manager([scripted("a")], SHARED, environ=environ)) as manager:
        address = await manager.switch("a")
        await manager.report_first_response("a", generation=address.generation, cached=0, prompt=5)
        with anyio.fail_after(20):
            while not list((tmp_path / "cache").rglob("footprints.json")):  # noqa: ASYNC110 - a file
                await anyio.sleep(0.01)
