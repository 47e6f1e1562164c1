"""Slots and embeddings around the start and stop of an engine, partly of the real one."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from fakes.slot_engine import SlotEngine, running_slot_engine
from system.running_gateway import gateway_starter

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import (
    EngineAddress,
    FirstAnswer,
    KeptConversations,
    ModelChanged,
    PromptIdentity,
    SwitchMoved,
)
from hostler.supervisor.engine_lifecycle import EngineLifecycle, EngineServices
from hostler.supervisor.manager import EngineManager, create_manager
from hostler.supervisor.memory import MemoryHistory
from hostler.supervisor.model_files import ModelFiles
from hostler.supervisor.slot_cache import RestoreResult, SaveResult, SlotCache

pytestmark = pytest.mark.anyio
FACTS = ModelFacts(architecture="llama", bytes=1000, kv_bytes_per_token=1)
PROFILE = Profile(name="alpha", model="/m.gguf", parallel=2)
CreateLifecycle = Callable[..., EngineLifecycle]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SlotEngine]:
    async with running_slot_engine(tmp_path) as engine:
        yield engine


@pytest.fixture
def cache(tmp_path: Path) -> SlotCache:
    cache = SlotCache(tmp_path, max_bytes=10_000, max_age_s=100.0, min_tokens=256)
    cache.prepare()
    cache.read_facts = lambda _: FACTS
    return cache


@pytest.fixture
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file."""
    file = tmp_path_factory.mktemp("models") / "m.gguf"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def lifecycle_of(cache: SlotCache, weights: Path) -> CreateLifecycle:
    """`lifecycle_of(profile, engine=...)`: the lifecycle of a model with that file, on a host that keeps slots."""

    def create(profile: Profile = PROFILE, *, engine: str | None = sys.executable) -> EngineLifecycle:
        services = EngineServices(
            settings=SupervisorSettings(engine=engine), host="", files=ModelFiles(), memory=MemoryHistory(), slots=cache
        )
        lifecycle = EngineLifecycle(profile, services)
        lifecycle.path = weights
        return lifecycle

    return create


async def test_a_lifecycle_saves_and_restores_for_the_file_that_the_engine_was_started_with(
    cache: SlotCache, engine: SlotEngine, lifecycle_of: CreateLifecycle
) -> None:
    lifecycle = lifecycle_of(engine=None)
    file = lifecycle.path
    assert file is not None
    await lifecycle.restore_slots(engine.address)
    await lifecycle.save_slots(engine.address)
    assert cache.total() == 1500
    await lifecycle.save_slots(engine.address)
    assert engine.requests.count("POST /slots/0?action=save") == 1
    file.write_bytes(b"other weights")
    await lifecycle.restore_slots(engine.address)
    assert engine.restored == {}
    file.write_bytes(b"weights")
    os.utime(file, ns=(7, 7))
    await lifecycle.restore_slots(engine.address)
    await lifecycle.save_slots(engine.address)
    file.unlink()
    await lifecycle.restore_slots(engine.address)
    await lifecycle.save_slots(engine.address)
    assert engine.requests.count("POST /slots/0?action=save") == 2


def remove(folder: Path) -> None:
    folder.rmdir()


def touch(file: Path) -> None:
    file.touch()


def permissions(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


async def test_a_folder_of_slots_that_was_removed_is_made_again_before_a_start(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "slots"
    cache = SlotCache(folder, max_bytes=10_000, max_age_s=100.0, min_tokens=256)
    cache.prepare()
    settings = SupervisorSettings(engine=sys.executable, slots_dir=str(folder))
    services = EngineServices(settings=settings, host="", files=ModelFiles(), memory=MemoryHistory(), slots=cache)
    lifecycle = EngineLifecycle(PROFILE, services)
    lifecycle.path = weights
    remove(folder)
    assert "--slot-save-path" in (await lifecycle.prepare())(1, "k").arguments
    assert permissions(folder) == 0o700
    # Engines refuse to start with a path that is no folder.
    remove(folder)
    touch(folder)
    assert "--slot-save-path" not in (await lifecycle.prepare())(1, "k").arguments


async def test_conversations_have_slots_for_as_long_as_their_engine_runs(
    engine: SlotEngine, lifecycle_of: CreateLifecycle
) -> None:
    lifecycle = lifecycle_of()
    prompts = [PromptIdentity("", ((number, 3000), (number + 10, 4000))) for number in range(3)]
    assert lifecycle.assign_slot(1, prompts[0]) is None
    await lifecycle.restore_slots(engine.address)
    assigned = [lifecycle.assign_slot(1, each) for each in prompts]
    assert [each and each.slot for each in assigned] == [0, 1, None]
    assert lifecycle.assign_slot(2, prompts[0]) is None
    await lifecycle.save_slots(engine.address)
    assert lifecycle.assign_slot(1, prompts[0]) is None
    await lifecycle.restore_slots(engine.address)
    again = lifecycle.assign_slot(1, prompts[1])
    assert again is not None
    assert (again.slot, again.prepared) == (1, True)


@pytest.mark.parametrize("change", [{"args": ("--swa-full",)}, {"args": ("-kvu",), "cache_ram_mib": 100}])
async def test_engines_that_keep_nothing_or_move_conversations_themselves_choose_their_slots(
    engine: SlotEngine, lifecycle_of: CreateLifecycle, change: dict[str, Any]
) -> None:
    lifecycle = lifecycle_of(msgspec.structs.replace(PROFILE, **change))
    await lifecycle.restore_slots(engine.address)
    assert lifecycle.assign_slot(1, PromptIdentity()) is None


Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
LONG = [{"role": "user", "content": "Tell me about ferries. " * 100}]


class RecordingSlots:
    """Saved slots that only record reports of first responses."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int]] = []

    async def restore(self, *_: Any) -> RestoreResult:
        return RestoreResult()

    async def save(self, *_: Any) -> SaveResult:
        return SaveResult()

    def read_facts(self, path: Path) -> None:
        return None

    def record_first_response(self, model: str, cached: int, prompt: int) -> None:
        self.reports.append((model, cached, prompt))


async def test_the_first_response_of_an_earlier_generation_is_ignored(
    scripted: Callable[..., Profile], running: Running, journal: Any
) -> None:
    slots: Any = RecordingSlots()
    async with running(EngineManager([scripted("a")], SupervisorSettings(), slots=slots)) as manager:
        old = await manager.switch("a")
        await manager.unload("a")
        new = await manager.switch("a")
        await manager.report_first_response("a", generation=old.generation, cached=0, prompt=9)
        await manager.report_first_response("a", generation=new.generation, cached=5, prompt=7)
    assert slots.reports == [("a", 5, 7)]


async def test_the_first_response_is_part_of_the_switch_and_of_the_status(
    scripted: Callable[..., Profile], running: Running, journal: Any
) -> None:
    slots: Any = RecordingSlots()
    async with running(EngineManager([scripted("a")], SupervisorSettings(), slots=slots)) as manager:
        address = await manager.switch("a")
        async with manager.events() as events:
            await anext(events)
            for _ in range(2):  # only the first one is reported
                await manager.report_first_response("a", generation=address.generation, cached=840, prompt=900)
            seen = []
            with anyio.fail_after(20):
                async for event in events:
                    seen.append(event)
                    if isinstance(event, ModelChanged) and event.status.conversations is not None:
                        break
    answer = FirstAnswer(prompt=900, cached=840)
    assert event.status.conversations == KeptConversations(first_answer=answer)
    ends = [(each.phase, each.model) for each in seen if isinstance(each, SwitchMoved) and each.first_answer == answer]
    assert ends == [("ready", "a")]


async def test_the_status_says_why_nothing_is_kept(
    cache: SlotCache, engine: SlotEngine, lifecycle_of: CreateLifecycle
) -> None:
    lifecycle = lifecycle_of(engine=f"{sys.executable} --swa-full")
    assert lifecycle.conversations is None
    await lifecycle.restore_slots(engine.address)
    await lifecycle.save_slots(engine.address)
    assert lifecycle.conversations == KeptConversations(
        reason="with --swa-full a restored conversation gets wrong answers"
    )
    assert cache.total() == 0


def model_file(folder: Path) -> Path:
    """A model file with a header of a model whose slots can be saved."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    names = ("block_count", "context_length", "embedding_length", "attention.head_count", "attention.head_count_kv")
    facts = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    facts += [text(f"llama.{name}") + struct.pack("<II", 4, 4) for name in names]
    file = folder / "llama.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(facts)) + b"".join(facts) + bytes(32))
    return file


def strikes(slots: Path) -> int:
    return sum(json.loads(file.read_bytes())["strikes"] for file in slots.glob("*.strikes"))


async def until_struck(slots: Path, times: int) -> None:
    """Wait until the supervisor has judged the restore: the gateway reports a response after its end."""
    with anyio.fail_after(20):
        while strikes(slots) != times:  # noqa: ASYNC110 - what is waited for is a file
            await anyio.sleep(0.005)


@pytest.mark.parametrize(("discard_restored", "kept"), [(True, [1, 1, 0, 0]), (False, [1, 1, 1, 1])])
async def test_slots_are_no_longer_saved_after_useless_restores(
    tmp_path: Path, discard_restored: bool, kept: list[int]
) -> None:
    slots = tmp_path / "slots"
    profile = {"model": str(model_file(tmp_path)), "script": {"discard_restored": discard_restored}}
    settings = {"slots_dir": str(slots), "slots_min_tokens": 100}
    seen = []
    async with gateway_starter(tmp_path)({"a": profile, "b": profile}, supervisor=settings) as gateway:
        for turn in range(4):
            assert (await gateway.chat("a", messages=LONG)).status_code == 200
            if discard_restored and turn in (1, 2):
                await until_struck(slots, turn)
            await gateway.chat("b")
            seen.append(len(list(slots.glob("*.kv"))))
    # Useless once, useless twice, then disabled.
    assert seen == kept


async def ask(address: EngineAddress, messages: list[dict[str, str]]) -> Any:
    headers = {"Authorization": f"Bearer {address.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=120, trust_env=False) as http:
        body = {"messages": messages, "max_tokens": 4, "temperature": 0}
        answer = await http.post(f"http://{address.host}:{address.port}/v1/chat/completions", json=body)
    return answer.raise_for_status().json()


@pytest.mark.engine
@pytest.mark.timeout(180)
async def test_each_conversation_is_restored_to_its_slot(
    real_model: Path, running: Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    profiles = [
        Profile(name=name, model=str(real_model), engine="embedded", context=1024, parallel=2, threads=1)
        for name in ("a", "b")
    ]
    settings = SupervisorSettings(slots_dir=str(tmp_path / "slots"), slots_min_tokens=100)
    stories = [
        " ".join(f"{what} number {number} is {number * 7 % 11} years old." for number in range(24))
        for what in ("The horse", "A ship")
    ]
    talks = [[{"role": "user", "content": story}] for story in stories]
    async with running(create_manager(profiles, settings, environ={"HOSTLER_CACHE": str(tmp_path)})) as manager:
        address = await manager.switch("a")
        for talk in talks:
            answer = await ask(address, talk)
            assert answer["timings"]["cache_n"] < 30
            talk += [answer["choices"][0]["message"], {"role": "user", "content": "Which is the oldest?"}]
        await manager.switch("b")
        assert len(list((tmp_path / "slots").glob("*.kv"))) == 2
        address = await manager.switch("a")
        for talk in reversed(talks):
            timings = (await ask(address, talk))["timings"]
            assert timings["cache_n"] >= 0.9 * (timings["cache_n"] + timings["prompt_n"])


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


@pytest.mark.engine
@pytest.mark.timeout(180)
@pytest.mark.parametrize("args", [(), ("--pooling", "last")])
async def test_a_chat_model_makes_embeddings_of_short_and_long_texts(
    real_model: Path,
    running: Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]],
    args: tuple[str, ...],
) -> None:
    pytest.importorskip("xllamacpp")
    profile = Profile(
        name="a", model=str(real_model), engine="embedded", context=2048, embeddings=True, threads=1, args=args
    )
    async with running(EngineManager([profile], SupervisorSettings())) as manager:
        address = await manager.switch("a")
        headers = {"Authorization": f"Bearer {address.key}"}
        url = f"http://{address.host}:{address.port}"
        texts = ["A cat sleeps.", "A kitten naps.", "word " * 700]
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as http:
            answer = await http.post("/v1/embeddings", json={"model": "a", "input": texts})
    assert answer.status_code == 200, answer.text
    cat, kitten, long = (each["embedding"] for each in answer.json()["data"])
    assert len(cat) == len(long) == 576
    assert answer.json()["usage"]["prompt_tokens"] > 700
    assert likeness(cat, kitten) > likeness(cat, long)
