"""Conversations that are moved between the slots of an engine and files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.slot_engine import SlotEngine, running_slot_engine
from msgspec.structs import replace

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.slot_assignment import AssignedSlot, EngineSlots
from hostler.supervisor.slot_cache import SlotCache

pytestmark = pytest.mark.anyio
FACTS = ModelFacts(architecture="llama", bytes=1000, kv_bytes_per_token=1)
PROFILE = Profile(name="alpha", model="/m.gguf", parallel=2)
KEY = "a" * 64


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SlotEngine]:
    async with running_slot_engine(tmp_path) as engine:
        yield engine


@pytest.fixture
def cache(tmp_path: Path) -> SlotCache:
    cache = SlotCache(tmp_path, max_bytes=100_000, max_age_s=1e9, min_tokens=256)
    cache.prepare()
    return cache


def opened(cache: SlotCache, engine: SlotEngine) -> EngineSlots:
    kept = cache.conversations(KEY)
    return EngineSlots(cache, engine.address, PROFILE, FACTS, key=KEY, build="b1", kept=kept, count=2)


def prompt(name: str, length: int = 1) -> PromptIdentity:
    return PromptIdentity("", tuple((hash((name, end)) % 2**40, 4000 + 1000 * end) for end in range(length + 1)))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.kv"))


async def ask(slots: EngineSlots, wanted: PromptIdentity) -> AssignedSlot:
    assigned = slots.assign(wanted)
    assert assigned is not None
    if not assigned.prepared:
        await assigned.prepare()
    assert assigned.prepared
    assigned.release()
    assigned.release()
    return assigned


async def test_a_cold_conversation_is_saved_and_brought_back(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    slots = opened(cache, engine)
    for name in ("one", "two"):
        await ask(slots, prompt(name))
    assert engine.requests == []
    assert (await ask(slots, prompt("three"))).slot == 0
    assert engine.requests == ["POST /slots/0?action=save"]
    assert (await ask(slots, prompt("one", 2))).slot == 1
    assert engine.requests[1:] == ["POST /slots/1?action=save", "POST /slots/1?action=restore"]
    # What was in slot 0 when it was saved.
    assert engine.restored == {1: b"\0" * 1000}
    assert files(tmp_path) == ["aaaaaaaaaaaaaaaa-c1.kv", "aaaaaaaaaaaaaaaa-c2.kv"]


async def test_conversations_are_known_to_the_next_engine(cache: SlotCache, engine: SlotEngine) -> None:
    slots = opened(cache, engine)
    for name in ("one", "two", "three"):
        await ask(slots, prompt(name))
    await cache.save(engine.address, PROFILE, FACTS, KEY, "b1", slots.held)
    cache.prepare()
    assert (await cache.restore(engine.address, PROFILE, FACTS, KEY, "b1")).slots == 2
    engine.requests.clear()
    slots = opened(cache, engine)
    assert (await ask(slots, prompt("three", 2))).slot == 0
    assert (await ask(slots, prompt("two", 2))).slot == 1
    assert engine.requests == []
    await ask(slots, prompt("one", 2))
    assert engine.requests == ["POST /slots/0?action=save", "POST /slots/0?action=restore"]


async def test_what_cannot_be_moved_is_read_again(cache: SlotCache, engine: SlotEngine, tmp_path: Path) -> None:
    slots = opened(cache, engine)
    for name in ("one", "two", "three"):
        await ask(slots, prompt(name))
    os.truncate(tmp_path / files(tmp_path)[0], 7)
    await ask(slots, prompt("one", 2))
    assert engine.restored == {}
    engine.missing = 1
    await ask(slots, prompt("four"))
    await ask(slots, prompt("five"))
    assert engine.restored == {}


async def test_it_is_known_whether_the_first_request_goes_on(cache: SlotCache, engine: SlotEngine) -> None:
    slots = opened(cache, engine)
    assert slots.begins_anew is None
    await ask(slots, prompt("one"))
    assert slots.begins_anew is True
    await cache.save(engine.address, PROFILE, FACTS, KEY, "b1", slots.held)
    slots = opened(cache, engine)
    await ask(slots, prompt("one", 2))
    await ask(slots, prompt("two"))
    assert slots.begins_anew is False


async def test_an_engine_that_is_gone_is_no_error(cache: SlotCache, engine: SlotEngine) -> None:
    gone = replace(engine.address, port=1)
    slots = EngineSlots(cache, gone, PROFILE, FACTS, key=KEY, build="b1", kept=[], count=2)
    for name in ("one", "two", "three", "one"):
        await ask(slots, prompt(name))


async def test_all_slots_busy_leaves_the_choice_to_the_engine(cache: SlotCache, engine: SlotEngine) -> None:
    slots = opened(cache, engine)
    assert [slots.assign(prompt(name)) is not None for name in ("one", "two", "three")] == [True, True, False]
