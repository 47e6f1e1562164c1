"""Saved slots, of a fake engine and of the real one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest
from fakes.ports import free_port
from fakes.real_engine import chat, running_engine
from fakes.slot_engine import SlotEngine, running_slot_engine
from msgspec.structs import replace

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.engine_client import EngineError, engine_build, request_json
from hostler.supervisor.slot_cache import NO_CHECKPOINTS, RestoreResult, SlotCache
from hostler.supervisor.slot_key import slot_key, unsupported_reason
from hostler.supervisor.slot_requests import SlotLimits

pytestmark = pytest.mark.anyio
FACTS = ModelFacts(architecture="llama", bytes=1000, kv_bytes_per_token=1)
WINDOW = replace(FACTS, architecture="gemma3", sliding_window=512)
RECURRENT = replace(FACTS, architecture="mamba2", recurrent=True)
PROFILE = Profile(name="alpha", model="/m.gguf", parallel=2)
KEY = "a" * 64


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SlotEngine]:
    async with running_slot_engine(tmp_path) as engine:
        yield engine


class Clock:
    """A clock that only moves when a test sets it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_in(directory: Path, clock: Clock, limits: SlotLimits) -> SlotCache:
    cache = SlotCache(directory, max_bytes=10_000, max_age_s=100.0, min_tokens=256, limits=limits, clock=clock)
    cache.prepare()
    return cache


@pytest.fixture
def cache(tmp_path: Path, clock: Clock) -> SlotCache:
    return cache_in(tmp_path, clock, SlotLimits())


@pytest.fixture
def impatient(tmp_path: Path, clock: Clock) -> SlotCache:
    """The same, for engines that do not answer."""
    return cache_in(tmp_path, clock, SlotLimits(save_s=0.2, restore_s=0.2))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


BOTH = ["aaaaaaaaaaaaaaaa-0.json", "aaaaaaaaaaaaaaaa-0.kv", "aaaaaaaaaaaaaaaa-1.json", "aaaaaaaaaaaaaaaa-1.kv"]


async def test_restores_what_was_saved_low_slots_first(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    saved = await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert (saved.slots, saved.tokens, saved.bytes) == (2, 1500, 1500)
    assert names(tmp_path) == BOTH
    engine.requests.clear()
    assert await cache.restore(engine.address, PROFILE, FACTS, KEY) == RestoreResult(slots=2, tokens=1500)
    assert engine.restored == {0: b"\0" * 1000, 1: b"\1" * 500}
    assert engine.requests == ["POST /slots/0?action=restore", "POST /slots/1?action=restore"]
    assert names(tmp_path) == BOTH


async def test_saves_only_idle_slots_with_enough_tokens(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    engine.tokens, engine.busy = [255, 256, 5000], {2}
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).tokens == 256
    assert engine.requests == ["GET /slots", "POST /slots/1?action=save"]


async def test_slots_of_older_engines_that_do_not_count_tokens_are_saved(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    engine.tokens, engine.counts = [255, 256, None], False
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).tokens == 256
    assert names(tmp_path) == BOTH[2:]


async def test_a_slot_that_was_emptied_loses_its_file(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    engine.tokens = [1000, 0]
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert names(tmp_path) == BOTH[:2]


async def test_an_unused_slot_keeps_its_file(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    engine.tokens = [None, 500]
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert names(tmp_path) == BOTH


async def test_a_damaged_file_is_never_restored(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    os.truncate(tmp_path / BOTH[1], 999)
    assert (await cache.restore(engine.address, PROFILE, FACTS, KEY)).slots == 1
    assert list(engine.restored) == [1]
    assert names(tmp_path) == BOTH[2:]


@pytest.mark.parametrize("damage", [b"", b"\xff{", b"[]", b'{"key": 1}', b'{"a": ' * 100_000])
async def test_an_unreadable_sidecar_costs_its_own_file_only(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path, damage: bytes
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    (tmp_path / BOTH[0]).write_bytes(damage)
    cache.prepare()
    assert names(tmp_path) == BOTH[2:]


async def test_a_save_that_wrote_less_than_it_reported_is_discarded(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    engine.missing = 1
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).slots == 0
    assert names(tmp_path) == []


async def test_a_failed_save_keeps_the_earlier_file(
    cache: SlotCache, impatient: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    engine.hangs = True
    with anyio.fail_after(20):
        assert (await impatient.save(engine.address, PROFILE, FACTS, KEY)).slots == 0
    assert names(tmp_path) == BOTH


@pytest.mark.parametrize("how", ["crashes", "hangs"])
async def test_a_file_that_crashes_or_hangs_the_engine_is_deleted(
    cache: SlotCache, impatient: SlotCache, engine: SlotEngine, tmp_path: Path, how: str
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    setattr(engine, how, True)
    restored = await impatient.restore(engine.address, PROFILE, FACTS, KEY)
    assert (restored.crashed, restored.slots) == (True, 0)
    assert names(tmp_path) == BOTH[2:]


async def test_a_slot_with_other_tokens_than_were_saved_is_erased(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    engine.requests.clear()
    engine.restores = 999
    assert (await cache.restore(engine.address, PROFILE, FACTS, KEY)).slots == 0
    assert engine.requests == [
        f"POST /slots/{slot}?action={action}" for slot in (0, 1) for action in ("restore", "erase")
    ]
    assert names(tmp_path) == []


@pytest.mark.parametrize("erases", [None, 501])
async def test_an_engine_whose_slot_cannot_be_erased_is_started_again(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path, erases: int | None
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    engine.restores, engine.erases = 999, erases
    restored = await cache.restore(engine.address, PROFILE, FACTS, KEY)
    assert (restored.slots, restored.crashed) == (0, True)
    assert names(tmp_path) == BOTH[2:]


def remove(folder: Path, left: str = "") -> None:
    """Remove the folder; a file or a link that leads nowhere takes its place."""
    shutil.rmtree(folder)
    if left == "file":
        folder.write_bytes(b"")
    elif left == "dangling link":
        folder.symlink_to(folder.with_name("gone"))


async def test_a_folder_that_was_removed_is_made_again_for_a_save(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    remove(tmp_path)
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).slots == 2
    assert names(tmp_path) == BOTH


@pytest.mark.parametrize("place", ["file", "dangling link"])
async def test_what_is_no_folder_keeps_nothing_and_costs_nothing(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path, place: str
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    remove(tmp_path, left=place)
    saved = await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert (saved.slots, str(tmp_path) in saved.why) == (0, True)
    assert await cache.restore(engine.address, PROFILE, FACTS, KEY) == RestoreResult()
    assert not await cache.load_conversation(engine.address, FACTS, KEY, 0, "c1")
    cache.record_first_response("alpha", 0)


async def test_a_disk_without_room_is_named(engine: SlotEngine, tmp_path: Path) -> None:
    cache = SlotCache(tmp_path, max_bytes=1 << 62, max_age_s=100.0, min_tokens=256)
    saved = await cache.save(engine.address, PROFILE, replace(FACTS, kv_bytes_per_token=1 << 50), KEY)
    assert saved.slots == 0
    assert saved.why == f"the disk of {tmp_path} has no room for {1000 << 50} bytes"


async def test_a_file_whose_sidecar_cannot_be_written_takes_no_space(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    engine.tokens = [1000]
    sidecar = tmp_path / BOTH[0]
    # Its name for the time of writing is taken.
    (tmp_path / f"{sidecar.name}.{os.getpid()}.new").mkdir()
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).slots == 0
    assert [name for name in names(tmp_path) if not name.endswith(".new")] == []


async def test_a_file_is_deleted_when_its_restore_is_cancelled(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    engine.hangs = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.restore, engine.address, PROFILE, FACTS, KEY)
        await engine.hanging.wait()
        tasks.cancel_scope.cancel()
    assert names(tmp_path) == BOTH[2:]


async def test_a_file_whose_restore_killed_the_supervisor_is_deleted_at_the_next_start(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    (tmp_path / "aaaaaaaaaaaaaaaa-0.restoring").touch()
    (tmp_path / "bbbbbbbbbbbbbbbb-0-12345678.part").write_bytes(b"half")
    (tmp_path / "cccccccccccccccc-0.kv").write_bytes(b"orphaned")
    (tmp_path / "dddddddddddddddd-0.json.new").write_bytes(b"{")
    (tmp_path / "eeeeeeeeeeeeeeee-0.json").write_bytes(b"{")
    cache.prepare()
    assert names(tmp_path) == BOTH[2:]


@pytest.mark.parametrize("name", ["aaaaaaaaaaaaaaaa-0.restoring", "copies.part", "notes.json.new", "copies.kv"])
async def test_a_directory_in_place_of_a_file_is_tolerated(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path, name: str
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    (tmp_path / name).mkdir()
    cache.prepare()
    assert (tmp_path / name).is_dir()
    assert names(tmp_path) == sorted([*BOTH, name])


async def test_a_rejected_file_is_not_restored_again(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    engine.answer = lambda method, path, body: (400, {"error": "no space"})  # type: ignore[method-assign]  # a refusal
    restored = await cache.restore(engine.address, PROFILE, FACTS, KEY)
    assert (restored.slots, restored.crashed) == (0, False)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("profile", "facts"),
    [
        (PROFILE, None),
        (replace(PROFILE, embeddings=True), FACTS),
        (replace(PROFILE, args=("--spec-type", "draft-dflash")), FACTS),
        (replace(PROFILE, args=("--swa-full",)), WINDOW),
    ],
)
async def test_saves_and_restores_nothing_for_models_that_do_not_support_it(
    cache: SlotCache, engine: SlotEngine, profile: Profile, facts: ModelFacts | None
) -> None:
    assert unsupported_reason(profile, facts)
    assert (await cache.save(engine.address, profile, facts, KEY)).why
    assert (await cache.restore(engine.address, profile, facts, KEY)).why
    assert engine.requests == []


async def test_restores_nothing_for_another_key(cache: SlotCache, engine: SlotEngine) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert await cache.restore(engine.address, PROFILE, FACTS, "b" * 64) == RestoreResult()
    assert await cache.restore(engine.address, PROFILE, FACTS, KEY[:-1] + "b") == RestoreResult()


async def test_restores_no_slot_that_the_engine_does_not_have(cache: SlotCache, engine: SlotEngine) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert (await cache.restore(engine.address, replace(PROFILE, parallel=1), FACTS, KEY)).slots == 1
    assert list(engine.restored) == [0]


async def test_deletes_the_oldest_for_space_and_the_expired(
    cache: SlotCache, engine: SlotEngine, clock: Clock, tmp_path: Path
) -> None:
    engine.tokens = [6000]
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    clock.now += 1
    await cache.save(engine.address, PROFILE, FACTS, "b" * 64)
    assert names(tmp_path) == ["bbbbbbbbbbbbbbbb-0.json", "bbbbbbbbbbbbbbbb-0.kv"]
    assert cache.total() == 6000
    clock.now += 101
    assert await cache.restore(engine.address, PROFILE, FACTS, "b" * 64) == RestoreResult()
    assert names(tmp_path) == []


async def test_a_slot_larger_than_the_limit_is_not_saved(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    engine.tokens = [10_001, 500]
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).tokens == 500
    assert names(tmp_path) == BOTH[2:]
    engine.tokens, engine.requests = [50_000, 0], []
    await cache.save(engine.address, PROFILE, FACTS, "b" * 64)
    assert engine.requests == ["GET /slots"]


def test_closes_a_folder_that_was_open_to_other_users(tmp_path: Path) -> None:
    folder = tmp_path / "slots"
    folder.mkdir(mode=0o755)
    SlotCache(folder, max_bytes=1 << 20, max_age_s=60, min_tokens=1).prepare()
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_two_useless_restores_disable_a_model(
    cache: SlotCache, engine: SlotEngine, clock: Clock, tmp_path: Path
) -> None:
    for _ in range(2):
        await cache.save(engine.address, PROFILE, FACTS, KEY)
        assert (await cache.restore(engine.address, PROFILE, FACTS, KEY)).slots == 2
        cache.record_first_response("alpha", 0, 1500)
        cache.record_first_response("alpha", 0, 1500)  # only the first answer counts
    assert names(tmp_path) == ["aaaaaaaaaaaaaaaa.strikes"]
    again = SlotCache(tmp_path, max_bytes=10_000, max_age_s=100.0, min_tokens=256, clock=clock)
    again.prepare()
    assert (await again.save(engine.address, PROFILE, FACTS, KEY)).why == "restoring did not help this model"
    assert (await again.save(engine.address, PROFILE, FACTS, "b" * 64)).slots == 2


async def test_other_conversations_and_useful_restores_are_no_strike(cache: SlotCache, engine: SlotEngine) -> None:
    for cache_n, prompt_n in ((0, 1500), (0, 100), (900, 100), (0, 1500)):
        await cache.save(engine.address, PROFILE, FACTS, KEY)
        assert (await cache.restore(engine.address, PROFILE, FACTS, KEY)).slots == 2
        cache.record_first_response("alpha", cache_n, prompt_n)
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).slots == 2


async def test_an_unreachable_engine_is_no_error(cache: SlotCache, engine: SlotEngine) -> None:
    gone = replace(engine.address, port=1)
    assert (await cache.save(gone, PROFILE, FACTS, KEY)).slots == 0


async def test_files_from_before_a_reboot_are_not_restored(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY)
    sidecar = tmp_path / BOTH[0]
    sidecar.write_bytes(msgspec.json.encode({**msgspec.json.decode(sidecar.read_bytes()), "boot": "another"}))
    assert (await cache.restore(engine.address, PROFILE, FACTS, KEY)).slots == 1


async def test_a_hanging_or_invalid_response_is_an_error(engine: SlotEngine) -> None:
    engine.hangs = True
    with pytest.raises(EngineError) as late:
        await request_json(engine.address, "POST", "/slots/0?action=save", dict, timeout_s=0.05)
    assert late.value.status is None
    engine.answer = lambda method, path, body: (200, "no object")  # type: ignore[method-assign]  # nonsense
    with pytest.raises(EngineError) as odd:
        await engine_build(engine.address)
    assert odd.value.status == 200


@pytest.mark.parametrize("facts", [WINDOW, RECURRENT])
async def test_models_that_need_checkpoints_are_kept_by_engines_that_save_them(
    cache: SlotCache, engine: SlotEngine, facts: ModelFacts
) -> None:
    engine.checkpoints = 2
    assert (await cache.save(engine.address, PROFILE, facts, KEY, "b1")).slots == 2
    restored = await cache.restore(engine.address, PROFILE, facts, KEY, "b1")
    assert (restored.slots, restored.why) == (2, "")


async def test_a_window_is_not_kept_by_engines_without_checkpoints_which_is_remembered_for_the_build(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    saved = await cache.save(engine.address, PROFILE, WINDOW, KEY, "old")
    # The second slot is shorter than the window: nothing of it has left the window.
    assert (saved.slots, saved.tokens, saved.why) == (1, 500, NO_CHECKPOINTS)
    engine.requests.clear()
    assert (await cache.restore(engine.address, PROFILE, WINDOW, KEY, "old")).why == NO_CHECKPOINTS
    assert (await cache.save(engine.address, PROFILE, WINDOW, "b" * 64, "old")).why == NO_CHECKPOINTS
    assert engine.requests == []
    engine.checkpoints = 1
    assert (await cache.save(engine.address, PROFILE, WINDOW, KEY, "new")).slots == 2


async def test_a_recurrent_model_is_kept_by_engines_without_checkpoints_but_not_its_last_answer(
    cache: SlotCache, engine: SlotEngine
) -> None:
    assert (await cache.save(engine.address, PROFILE, RECURRENT, KEY, "old")).slots == 2
    restored = await cache.restore(engine.address, PROFILE, RECURRENT, KEY, "old")
    assert restored.slots == 2
    assert "the last answer is read again" in restored.why


async def test_an_engine_that_has_once_saved_checkpoints_is_not_judged_by_a_file_without(
    cache: SlotCache, engine: SlotEngine
) -> None:
    engine.checkpoints = 1
    await cache.save(engine.address, PROFILE, WINDOW, KEY, "b1")
    engine.checkpoints = 0
    assert (await cache.save(engine.address, PROFILE, WINDOW, KEY, "b1")).why == NO_CHECKPOINTS
    engine.checkpoints = 1
    assert (await cache.save(engine.address, PROFILE, WINDOW, KEY, "b1")).slots == 2


async def test_a_large_slot_may_take_longer(engine: SlotEngine, tmp_path: Path, clock: Clock) -> None:
    cache = cache_in(tmp_path, clock, SlotLimits(save_s=0.0, restore_s=0.0, bytes_per_s=10.0))
    assert (await cache.save(engine.address, PROFILE, replace(FACTS, kv_bytes_per_token=2), KEY)).slots == 2
    assert (await cache.restore(engine.address, PROFILE, FACTS, KEY)).slots == 2


async def test_an_engine_that_hangs_while_it_saves_is_not_asked_for_its_other_slots(
    impatient: SlotCache, engine: SlotEngine
) -> None:
    engine.hangs = True
    await impatient.save(engine.address, PROFILE, FACTS, KEY)
    assert engine.requests == ["GET /slots", "POST /slots/0?action=save"]


@pytest.mark.engine
@pytest.mark.timeout(180)
async def test_a_long_conversation_is_not_processed_again_after_a_restart(tmp_path: Path, real_model: Path) -> None:
    facts = ModelFacts(architecture="llama", bytes=98362432, kv_bytes_per_token=23040)
    profile = Profile(name="alpha", model=str(real_model), context=4096)
    cache = SlotCache(tmp_path, max_bytes=1 << 30, max_age_s=3600, min_tokens=256)
    cache.prepare()
    story = " ".join(f"Line {number}: the stable holds {number % 7} horses." for number in range(80))
    messages = [{"role": "user", "content": story}]
    port = free_port()
    async with running_engine(real_model, port, tmp_path) as address:
        first = await chat(address, messages)
        key = slot_key(profile, real_model, await engine_build(address))
        began = time.monotonic()
        saved = await cache.save(address, profile, facts, key)
        save_s = time.monotonic() - began
        assert saved.slots == 1
    async with running_engine(real_model, port, tmp_path) as address:
        assert key == slot_key(profile, real_model, await engine_build(address))
        began = time.monotonic()
        restored = await cache.restore(address, profile, facts, key)
        restore_s = time.monotonic() - began
        messages += [first["choices"][0]["message"], {"role": "user", "content": "How many horses?"}]
        second = await chat(address, messages)
    timings = second["timings"]
    print(
        f"\n{saved.tokens} tokens, {saved.bytes} bytes, save {save_s:.3f} s, restore {restore_s:.3f} s; first "
        f"{first['timings']['prompt_n']} tokens {first['timings']['prompt_ms']:.0f} ms, "
        f"then {timings['prompt_n']} (cached {timings['cache_n']}) {timings['prompt_ms']:.0f} ms"
    )
    assert (restored.slots, restored.tokens) == (1, saved.tokens)
    assert timings["cache_n"] >= 0.95 * (timings["cache_n"] + timings["prompt_n"])


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_shared_folder_is_refused_and_stays_as_it_is(tmp_path: Path, clock: Clock, mode: int) -> None:
    folder = tmp_path / "shared"
    (folder / "theirs").mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(PermissionError, match="open to other users"):
        cache_in(folder, clock, SlotLimits())
    assert folder.stat().st_mode & 0o7777 == mode
