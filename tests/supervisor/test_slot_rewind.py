"""Slots of engines without context checkpoints are taken back to their last prompt before they are saved."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fakes.ports import free_port
from fakes.real_engine import post, running_engine
from fakes.slot_engine import SlotEngine, checkpoint_appendix, running_slot_engine, token_list
from msgspec.structs import replace

from bench.random_models import write_model
from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.slot_cache import REWINDS, SlotCache
from hostler.supervisor.slot_requests import SlotLimits
from hostler.supervisor.slot_rewind import read_tokens, rewind
from hostler.supervisor.slot_table import KeptConversation

pytestmark = pytest.mark.anyio
FACTS = ModelFacts(architecture="mamba2", bytes=1000, kv_bytes_per_token=1, recurrent=True)
PROFILE = Profile(name="alpha", model="/m.gguf")
KEY = "a" * 64


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SlotEngine]:
    async with running_slot_engine(tmp_path) as engine:
        engine.tokens, engine.last_prompt = [1000], 900
        yield engine


def cache_in(folder: Path) -> SlotCache:
    limits = SlotLimits(rewind_s=0.3)
    cache = SlotCache(folder, max_bytes=100_000, max_age_s=100.0, min_tokens=256, limits=limits)
    cache.prepare()
    return cache


@pytest.fixture
def cache(tmp_path: Path) -> SlotCache:
    return cache_in(tmp_path)


def saved_tokens(folder: Path) -> list[list[int]]:
    """Those of all slot files, if nothing else is left in the folder."""
    assert not list(folder.glob("*.part"))
    return [read_tokens(file) for file in folder.glob("*.kv")]


async def test_a_recurrent_slot_is_saved_at_the_end_of_its_last_prompt(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path
) -> None:
    saved = await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert (saved.slots, saved.tokens, saved.why) == (1, 901, "")
    assert engine.requests == [
        "GET /slots", "POST /slots/0?action=save", "POST /completion", "POST /completion", "POST /slots/0?action=save",
    ]  # fmt: skip
    assert saved_tokens(tmp_path) == [[*range(901)]]


@pytest.mark.parametrize("last_prompt", [0, 499, 1000])
async def test_it_is_saved_as_it_is_if_that_keeps_less_than_half_or_everything(
    cache: SlotCache, engine: SlotEngine, last_prompt: int
) -> None:
    engine.last_prompt = last_prompt
    assert (await cache.save(engine.address, PROFILE, FACTS, KEY)).tokens == 1000


@pytest.mark.parametrize(
    ("change", "checkpoints"), [({"recurrent": False}, 0), ({"sliding_window": 64}, 0), ({}, 2)], ids=str
)
async def test_no_other_slot_is_taken_back(
    cache: SlotCache, engine: SlotEngine, change: dict[str, Any], checkpoints: int
) -> None:
    engine.checkpoints = checkpoints
    await cache.save(engine.address, PROFILE, replace(FACTS, **change), KEY)
    assert "POST /completion" not in engine.requests


def conversation(size: int) -> KeptConversation:
    return KeptConversation("c1", PromptIdentity("", ((1, size),)))


async def test_no_slot_is_taken_back_to_a_prompt_that_is_short_beside_the_answer(
    cache: SlotCache, engine: SlotEngine
) -> None:
    await cache.save(engine.address, PROFILE, FACTS, KEY, held=lambda _: conversation(200))
    assert "POST /completion" not in engine.requests
    await cache.save(engine.address, PROFILE, FACTS, KEY, held=lambda _: conversation(3000))
    assert "POST /completion" in engine.requests


async def test_no_slot_is_taken_back_by_an_engine_that_saves_the_checkpoints_of_others(
    cache: SlotCache, engine: SlotEngine
) -> None:
    engine.checkpoints = 2
    await cache.save(engine.address, PROFILE, FACTS, KEY, "b1")
    engine.checkpoints = 0
    await cache.save(engine.address, PROFILE, FACTS, KEY, "b1")
    assert "POST /completion" not in engine.requests


@pytest.mark.parametrize("cold", [False, True])
async def test_an_engine_that_cannot_do_it_is_asked_three_times_over_restarts(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path, cold: bool
) -> None:
    async def save(build: str, facts: ModelFacts = FACTS) -> int:
        """How many requests that took."""
        before = engine.requests.count("POST /completion")
        engine.tokens = [1000]
        if cold:
            assert await cache.save_conversation(engine.address, PROFILE, facts, KEY, build, 0, conversation(3000))
        else:
            assert (await cache.save(engine.address, PROFILE, facts, KEY, build)).tokens == 1000
        return engine.requests.count("POST /completion") - before

    engine.last_prompt = 0  # it begins anew
    assert [await save("b1") for _ in range(REWINDS - 1)] == [1] * (REWINDS - 1)
    cache = cache_in(tmp_path)
    engine.silent = "/completion"  # it is too slow
    assert [await save("b1") for _ in range(3)] == [1, 0, 0]
    engine.silent = ""
    assert await save("b2") == 1
    assert await save("b1", replace(FACTS, architecture="qwen35")) == 1


async def test_an_engine_that_does_it_again_may_fail_as_often_as_before(cache: SlotCache, engine: SlotEngine) -> None:
    for prompt in (0, 0, 900, 0, 0, 300, 0, 0, 0, 0):
        engine.tokens, engine.last_prompt = [1000], prompt
        await cache.save(engine.address, PROFILE, FACTS, KEY)
    # Two requests where it succeeds, none at the last save.
    assert engine.requests.count("POST /completion") == 10


@pytest.mark.parametrize("failure", ["refused", "no event", "no progress", "hangs", "other number"])
async def test_it_is_saved_as_it_is_if_the_engine_does_not_do_it(
    cache: SlotCache, engine: SlotEngine, tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = engine.answer

    def refuse(method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/completion":
            return answer(method, path, body)
        if failure == "other number" and not body["stream"]:
            return 200, {"timings": {"cache_n": 3}}
        if failure == "other number":
            return answer(method, path, body)
        return (400 if failure == "refused" else 200), ({"index": 0} if failure == "no progress" else "")

    engine.silent = "/completion" if failure == "hangs" else ""
    monkeypatch.setattr(engine, "answer", refuse)
    saved = await cache.save(engine.address, PROFILE, FACTS, KEY)
    assert (saved.slots, saved.tokens) == (1, 1000)
    assert saved_tokens(tmp_path) == [[*range(1000)]]


PACKED = (-1, 1, 3, 7, 8, 9, 0)


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (token_list([1, 2, 3]) + b"state", [1, 2, 3]),
        (token_list(PACKED) + b"state", [7, 8, 9]),
        (token_list((*PACKED[:-1], 1, 5)), []),  # with an image
        (token_list((-1, 2, 3, 7, 8, 9, 0)), []),  # of a later version
        (token_list((-1, 1, 9, 7, 8, 9, 0)), []),
        (token_list((-1, 1)), []),
        (token_list([1, -1, 3]), []),
        (token_list([1, 2, 3])[:-1], []),
        (struct.pack("<4sII", b"qsgg", 3, 1 << 31), []),
        (b"GGUF" + token_list([1, 2, 3])[4:], []),
        (b"", []),
    ],
)
def test_reads_the_tokens_of_a_slot_file(tmp_path: Path, content: bytes, tokens: list[int]) -> None:
    file = tmp_path / "slot.kv"
    file.write_bytes(content)
    assert read_tokens(file) == tokens


STORY = "".join(
    f"In the year {1000 + n} the ferry carried {17 * n % 97} sheep and {31 * n % 89} goats. " for n in range(20)
)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["mamba2", "qwen35"])
async def test_an_engine_without_checkpoints_reads_the_answer_again_and_not_the_prompt(
    tmp_path: Path, name: str
) -> None:
    """The real engine, whose file is cut to what earlier builds write: the same without the checkpoints."""
    model, slots = write_model(tmp_path / "model.gguf", name), tmp_path
    file = slots / "slot.kv"

    async def complete(address: Any, prompt: str) -> Any:
        body = {"prompt": prompt, "n_predict": 16, "temperature": 0, "return_tokens": True, "ignore_eos": True}
        return await post(address, "/completion", body)

    async def act(address: Any, action: str) -> None:
        await post(address, f"/slots/0?action={action}", {"filename": file.name})

    async with running_engine(model, free_port(), slots) as address:
        said = (await complete(address, STORY))["content"]
        await act(address, "save")
        tokens = read_tokens(file)
        kept = await rewind(address, 0, tokens, timeout_s=20)
        assert 0 < len(STORY) - kept < 8 < len(tokens) - kept
        await act(address, "save")
        assert read_tokens(file) == tokens[:kept]
        following = STORY + said[:5] + " And then?"
        right = await complete(address, following)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(checkpoint_appendix(0)[:8])])
    async with running_engine(model, free_port(), slots) as address:
        await act(address, "restore")
        answer = await complete(address, following)
    assert answer["timings"]["prompt_n"] < 40
    assert answer["tokens"] == right["tokens"]
