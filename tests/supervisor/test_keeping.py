"""The first answer after a start tells whether a conversation that was kept has helped; if not, no more are kept."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from system.house import house_in

from hostler.profiles.schema import Profile
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.slot_cache import RestoreResult, SaveResult

pytestmark = pytest.mark.anyio

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
