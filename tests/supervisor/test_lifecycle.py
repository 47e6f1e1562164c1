"""Slots and embeddings around the start and stop of an engine, partly of the real one."""

from __future__ import annotations

import asyncio
import json
import math
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from msgspec.structs import replace
from system.house import house_in

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.lifecycle import EngineLifecycle, EngineServices
from hostler.supervisor.manager import EngineManager, create_manager
from hostler.supervisor.memory import MemoryHistory
from hostler.supervisor.model_files import ModelFiles
from hostler.supervisor.slot_cache import RestoreResult, SaveResult, SlotCache, SlotLimits

pytestmark = pytest.mark.anyio
FACTS = ModelFacts(architecture="llama", bytes=1000, kv_bytes_per_token=1)
PROFILE = Profile(name="alpha", model="/m.gguf", parallel=2)


class WritingEngine:
    """Answers the slot routes as llama-server does, with files of `tokens` bytes and without a model."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tokens: list[Any] = [1000, 500]
        self.busy: set[int] = set()
        self.restored: dict[int, bytes] = {}
        self.asked: list[str] = []
        self.says: int | None = None
        self.wanting = 0
        self.deaf = self.dies = False
        self.address = EngineAddress(model="alpha", host="", port=0, key="k", generation=1, context=9, parallel=2)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/props":
            return 200, {"build_info": "b1", "total_slots": 2}
        if path == "/slots":
            listed = [
                {"id": number, "n_ctx": 9, "is_processing": number in self.busy}
                | ({} if tokens is None else {"n_prompt_tokens": tokens})
                for number, tokens in enumerate(self.tokens)
            ]
            return 200, listed
        slot = int(path.split("/")[2].partition("?")[0])
        file = self.directory / body["filename"]
        if path.endswith("save"):
            file.write_bytes(bytes([slot]) * (self.tokens[slot] - self.wanting))
            return 200, {"n_saved": self.tokens[slot], "n_written": self.says or self.tokens[slot]}
        self.restored[slot] = file.read_bytes()
        return 200, {"n_restored": len(self.restored[slot]), "n_read": len(self.restored[slot])}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
            body = json.loads(await reader.readexactly(length) or b"{}")
            method, path, _ = head.split(" ", 2)
            self.asked.append(f"{method} {path}")
            assert "authorization: bearer k" in head.lower()
            if "restore" in path and self.dies:
                return
            if "action" in path and self.deaf:
                await reader.read()
                return
            status, answer = self.answer(method, path, body)
            content = json.dumps(answer).encode()
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            await writer.drain()
        finally:
            writer.close()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[WritingEngine]:
    engine = WritingEngine(tmp_path)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.address = replace(engine.address, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    async with server:
        yield engine


class Clock:
    """A clock that stands still until it is told."""

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


async def test_a_lifecycle_saves_and_restores_for_the_file_that_the_engine_was_started_with(
    cache: SlotCache, engine: WritingEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("models") / "m.gguf"
    file.write_bytes(b"weights")
    cache.read_facts = lambda _: FACTS
    services = EngineServices(
        settings=SupervisorSettings(), host="", files=ModelFiles(), memory=MemoryHistory(), slots=cache
    )
    lifecycle = EngineLifecycle(PROFILE, services)
    lifecycle.path = file
    await lifecycle.restore_slots(engine.address)
    await lifecycle.save_slots(engine.address)
    assert cache.total() == 1500
    await lifecycle.save_slots(engine.address)
    assert engine.asked.count("GET /slots") == 1
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
    assert engine.asked.count("GET /slots") == 2


Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
LONG = [{"role": "user", "content": "Tell me about ferries. " * 100}]


class RecordingSlots:
    """Saved slots that only record what is reported of first responses."""

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


async def test_what_an_engine_of_yesterday_answered_is_ignored(
    scripted: Callable[..., Profile], running: Running, journal: Any
) -> None:
    slots: Any = RecordingSlots()
    async with running(EngineManager([scripted("a")], SupervisorSettings(), slots=slots)) as manager:
        old = await manager.switch("a")
        await manager.unload("a")
        new = await manager.switch("a")
        await manager.answered("a", generation=old.generation, cached=0, prompt=9)
        await manager.answered("a", generation=new.generation, cached=5, prompt=7)
    assert slots.reports == [("a", 5, 7)]


async def test_a_gateway_elsewhere_tells_it_too(pretended: Any, serve: Any) -> None:
    from hostler.supervisor.api import create_app

    async with serve(create_app(pretended, token="t")) as url, SupervisorClient(url, "t") as client:
        await client.answered("first", generation=3, cached=10, prompt=20)
    assert pretended.answers == [("alpha", 3, 10, 20)]


def model_file(folder: Path) -> Path:
    """A file that says what it is, and that its conversations can be kept."""

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
    """The gateway tells of an answer after it has ended: wait until the supervisor has drawn its conclusion."""
    with anyio.fail_after(20):
        while strikes(slots) != times:  # noqa: ASYNC110 - what is waited for is a file
            await anyio.sleep(0.005)


@pytest.mark.parametrize(("forgetful", "kept"), [(True, [1, 1, 0, 0]), (False, [1, 1, 1, 1])])
async def test_a_conversation_that_is_read_anew_all_the_same_is_not_kept_for_ever(
    tmp_path: Path, forgetful: bool, kept: list[int]
) -> None:
    slots = tmp_path / "slots"
    profile = {"model": str(model_file(tmp_path)), "script": {"forgetful": forgetful}}
    settings = {"slots_dir": str(slots), "slots_min_tokens": 100}
    seen = []
    async with house_in(tmp_path)({"a": profile, "b": profile}, supervisor=settings) as house:
        for turn in range(4):
            assert (await house.chat("a", messages=LONG)).status_code == 200
            if forgetful and turn in (1, 2):
                await until_struck(slots, turn)
            await house.chat("b")
            seen.append(len(list(slots.glob("*.kv"))))
    # Of no use once, of no use twice, and then no more.
    assert seen == kept


async def ask(address: EngineAddress, messages: list[dict[str, str]]) -> Any:
    headers = {"Authorization": f"Bearer {address.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=120, trust_env=False) as http:
        body = {"messages": messages, "max_tokens": 4, "temperature": 0}
        answer = await http.post(f"http://{address.host}:{address.port}/v1/chat/completions", json=body)
    return answer.raise_for_status().json()


@pytest.mark.engine
@pytest.mark.timeout(180)
async def test_each_conversation_comes_back_to_the_slot_that_holds_it(
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
