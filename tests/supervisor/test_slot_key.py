"""Which saved slots fit which engine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.slot_cache import SlotCache, SlotLimits
from hostler.supervisor.slot_key import slot_key, unsupported_reason

pytestmark = pytest.mark.anyio
FACTS = ModelFacts(architecture="llama", bytes=1000, kv_bytes_per_token=1)
PROFILE = Profile(name="alpha", model="/m.gguf", parallel=2)
KEY = "a" * 64


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


@pytest.mark.parametrize(
    ("profile", "facts"),
    [
        (PROFILE, None),
        (PROFILE, replace(FACTS, sliding_window=512)),
        (PROFILE, replace(FACTS, metadata={"gemma3.attention.sliding_window": 512})),
        (PROFILE, replace(FACTS, recurrent=True)),
        (replace(PROFILE, embeddings=True), FACTS),
        (replace(PROFILE, args=("-md", "/draft.gguf")), FACTS),
    ],
)
async def test_leaves_models_alone_whose_caches_do_not_come_back(
    cache: SlotCache, engine: WritingEngine, profile: Profile, facts: ModelFacts | None
) -> None:
    assert unsupported_reason(profile, facts)
    assert (await cache.save(engine.address, profile, facts, KEY)).why
    assert (await cache.restore(engine.address, profile, facts, KEY)).why
    assert engine.asked == []


def test_a_key_changes_with_all_that_a_cache_depends_on(tmp_path: Path) -> None:
    file, adapter = tmp_path / "m.gguf", tmp_path / "a.gguf"
    file.write_bytes(b"weights")
    adapter.write_bytes(b"adapter")
    profile = replace(PROFILE, args=("--lora-scaled", f"{adapter}:0.5"))
    keys = {slot_key(profile, file, "b1"), slot_key(profile, file, "b2")}
    for change in (
        {"parallel": 1},
        {"name": "beta"},
        {"args": (*profile.args, "-ctk", "q8_0")},
        {"args": (*profile.args, "-fa", "on")},
        {"args": (*profile.args, "-kvu")},
        {"args": (*profile.args, "--rope-scale", "2")},
        {"env": {"LLAMA_ARG_CACHE_TYPE_K": "q8_0"}},
    ):
        keys.add(slot_key(replace(profile, **change), file, "b1"))
    adapter.write_bytes(b"adaptor")
    os.utime(adapter, ns=(1, 1))
    keys.add(slot_key(profile, file, "b1"))
    file.write_bytes(b"wights!")
    os.utime(file, ns=(1, 1))
    keys.add(slot_key(profile, file, "b1"))
    assert len(keys) == 11


def test_a_key_stays_when_only_speed_changes(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    faster = replace(PROFILE, args=("-t", "8", "-ngl", "99"), context=9999, batch=2048, ttl_s=3.0, description="x")
    assert slot_key(PROFILE, file, "b") == slot_key(faster, file, "b")
