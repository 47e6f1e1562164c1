"""Conversations with models of every kind of memory survive a restart of the real engine, without a wrong token.

Answers are compared with those of an engine that was not restarted: it computes the same in the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from fakes.ports import free_port
from fakes.real_engine import post, running_engine

from bench.random_models import ARCHITECTURES, FIRST_CONTEXT, WINDOW, write_model
from hostler.profiles.gguf import read_facts
from hostler.profiles.schema import Profile
from hostler.supervisor.contract import EngineAddress, PromptIdentity
from hostler.supervisor.engine_client import engine_build
from hostler.supervisor.slot_cache import RestoreResult, SlotCache
from hostler.supervisor.slot_key import needs_checkpoints, slot_key, unsupported_reason
from hostler.supervisor.slot_table import KeptConversation

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

STORY = "".join(
    f"In the year {1000 + n} the ferry carried {17 * n % 97} sheep and {31 * n % 89} goats. " for n in range(40)
)
FIRST = {"prompt": STORY, "n_predict": 24, "temperature": 0, "ignore_eos": True}
#: Models of random weights, some of which guess by a draft model, or by a head in the same file or another one.
MODELS = [
    *((name, "") for name in ARCHITECTURES),
    *((name, "draft-simple") for name in ("llama", "qwen35", "gemma3")),
    ("glm4moe-mtp", "draft-mtp"), ("qwen35-mtp", "draft-mtp"), ("llama", "draft-eagle3"),
]  # fmt: skip
#: What is given to the engine as a draft model.
DRAFTS = {"draft-simple": "llama", "draft-eagle3": "eagle3"}


class Answer(msgspec.Struct, frozen=True):
    """The tokens of an answer, the log probability of each, how many tokens of the prompt were cached and read, and how many
    were guessed."""

    tokens: list[int]
    logprobs: list[float]
    cached: int
    read: int
    guessed: int


async def complete(address: EngineAddress, prompt: str) -> Answer:
    body = {
        "prompt": prompt,
        "n_predict": 16,
        "temperature": 0,
        "n_probs": 1,
        "return_tokens": True,
        "ignore_eos": True,
    }
    answer: Any = await post(address, "/completion", body)
    logprobs = [each["logprob"] for each in answer["completion_probabilities"]]
    timings = answer["timings"]
    return Answer(answer["tokens"], logprobs, timings["cache_n"], timings["prompt_n"], timings.get("draft_n", 0))


class Conversation:
    """A conversation with a model, asked once and saved; `after_restart` continues it in a new engine."""

    def __init__(self, folder: Path, name: str, arguments: Sequence[str] = ()) -> None:
        self.slots = folder / "slots"
        self.cache = SlotCache(self.slots, max_bytes=1 << 30, max_age_s=3600, min_tokens=256, read_facts=read_facts)
        self.cache.prepare()
        self.model = write_model(folder / f"{name}.gguf", name)
        self.arguments = tuple(arguments)
        self.profile = Profile(name="alpha", model=str(self.model), context=4096, args=self.arguments)
        self.facts = read_facts(self.model)
        self.key, self.answer = "", ""

    async def begin(self) -> None:
        async with running_engine(self.model, free_port(), self.slots, self.arguments) as address:
            self.answer = (await post(address, "/completion", FIRST))["content"]
            self.key = slot_key(self.profile, self.model, await engine_build(address), self.facts)
            saved = await self.cache.save(address, self.profile, self.facts, self.key, "b1")
        assert (saved.slots, saved.why) == (1, "")

    async def after_restart(self, prompt: str) -> Answer:
        async with running_engine(self.model, free_port(), self.slots, self.arguments) as address:
            restored = await self.cache.restore(address, self.profile, self.facts, self.key, "b1")
            assert (restored.slots, restored.why) == (1, "")
            return await complete(address, prompt)

    async def without_restart(self, prompt: str) -> Answer:
        async with running_engine(self.model, free_port(), self.slots, self.arguments) as address:
            await post(address, "/completion", FIRST)
            return await complete(address, prompt)


#: How the next prompt follows from the conversation, and how many of its tokens are read at most: since the last
#: checkpoint before the first change, which lies 4 tokens before the end of the first prompt, or 512 before that.
CONTINUATIONS: dict[str, tuple[Callable[[str], str], int]] = {
    "identical": (lambda _: STORY, 8),
    "extended": (lambda answer: STORY + answer + " And then?", 64),
    "reasoning dropped": (lambda answer: STORY + answer[:6] + " And then?", 64),
    "diverged": (lambda _: STORY[:-100] + "x" * 100, 640),
}


@pytest.mark.parametrize(("name", "guesses"), MODELS)
async def test_a_conversation_is_not_read_again(tmp_path: Path, name: str, guesses: str) -> None:
    arguments = ["--spec-type", guesses] if guesses else []
    if guesses in DRAFTS:
        arguments += ["-md", str(write_model(tmp_path / "draft.gguf", DRAFTS[guesses], seed=2))]
    conversation = Conversation(tmp_path, name, arguments)
    await conversation.begin()
    for kind, (prompt_after, most) in CONTINUATIONS.items():
        prompt = prompt_after(conversation.answer)
        answer = await conversation.after_restart(prompt)
        assert answer.read <= most, kind
        assert (answer.guessed > 0) == bool(guesses), kind
        assert answer.tokens == (await conversation.without_restart(prompt)).tokens, kind


async def test_a_full_window_gets_other_log_probabilities_after_a_restore(tmp_path: Path) -> None:
    """Why nothing is kept with `--swa-full`: the engine saves the last window only, and takes it for all."""
    conversation = Conversation(tmp_path, "gemma3", ["--swa-full"])
    assert "--swa-full" in unsupported_reason(conversation.profile, conversation.facts)
    # As if the rule did not exist.
    conversation.profile = msgspec.structs.replace(conversation.profile, args=())
    conversation.facts = msgspec.structs.replace(conversation.facts, sliding_window=0)
    await conversation.begin()
    prompt = STORY[: -WINDOW // 2] + "x"
    answer, right = await conversation.after_restart(prompt), await conversation.without_restart(prompt)
    assert answer.cached > len(STORY) - WINDOW
    assert max(abs(a - b) for a, b in zip(answer.logprobs, right.logprobs, strict=True)) > 0.01


async def test_a_conversation_is_not_given_to_a_context_in_which_its_model_turns_keys_otherwise(tmp_path: Path) -> None:
    conversation = Conversation(tmp_path, "llama-longrope", ["-c", str(FIRST_CONTEXT)])
    await conversation.begin()
    prompt = STORY[:1000] + "x"
    same = [await conversation.after_restart(prompt), await conversation.without_restart(prompt)]
    assert same[0].tokens == same[1].tokens
    # As if the rule did not exist.
    conversation.arguments = ("-c", str(2 * FIRST_CONTEXT))
    longer = [await conversation.after_restart(prompt), await conversation.without_restart(prompt)]
    assert longer[0].cached == longer[1].cached > 0
    assert longer[0].tokens != longer[1].tokens

    def key(context: int) -> str:
        profile = msgspec.structs.replace(conversation.profile, context=context)
        return slot_key(profile, conversation.model, "b1", conversation.facts)

    assert key(FIRST_CONTEXT) == key(FIRST_CONTEXT // 2) != key(FIRST_CONTEXT + 1) == key(8 * FIRST_CONTEXT)


@pytest.mark.parametrize("name", ["gemma3", "mamba2"])
async def test_a_restored_slot_has_the_log_probabilities_of_one_that_was_read(tmp_path: Path, name: str) -> None:
    conversation = Conversation(tmp_path, name)
    await conversation.begin()
    # Cut off at any place: within the answer, within the last window, and far from it.
    cuts = [0, 3, WINDOW // 2, *random.Random(1).sample(range(len(STORY)), 3)]
    for cut in cuts:
        prompt = STORY[: len(STORY) - cut] + "x"
        answer, right = await conversation.after_restart(prompt), await conversation.without_restart(prompt)
        assert answer.tokens == right.tokens
        assert answer.logprobs == pytest.approx(right.logprobs, abs=0.005)


@pytest.mark.parametrize("name", ["gemma3", "qwen35"])
async def test_a_file_that_is_cut_off_anywhere_is_never_restored(tmp_path: Path, name: str) -> None:
    conversation = Conversation(tmp_path, name)
    await conversation.begin()
    (file,) = conversation.slots.glob("*.kv")
    whole = file.read_bytes()
    appendix = whole.rindex(b"SCKP")
    sidecar = next(conversation.slots.glob("*.json")).read_bytes()
    for size in (0, appendix // 2, appendix, appendix + 40, len(whole) - 1):
        file.write_bytes(whole[:size])
        file.with_suffix(".json").write_bytes(sidecar)
        async with running_engine(conversation.model, free_port(), conversation.slots) as address:
            facts, profile = conversation.facts, conversation.profile
            assert (await conversation.cache.restore(address, profile, facts, conversation.key, "b1")).slots == 0
            assert (await complete(address, "Hello")).tokens
        assert not file.exists()


async def frozen(address: EngineAddress) -> psutil.Process:
    """The engine at this address, which does nothing any more."""
    children = psutil.Process().children()
    engine = next(each for each in children if str(address.port) in each.cmdline())
    engine.suspend()
    return engine


async def test_an_engine_that_is_killed_while_it_saves_leaves_the_earlier_file(tmp_path: Path) -> None:
    conversation = Conversation(tmp_path, "llama")
    await conversation.begin()
    files = {file.name: file.read_bytes() for file in conversation.slots.iterdir()}
    async with running_engine(conversation.model, free_port(), conversation.slots) as address:
        await post(address, "/completion", FIRST)
        engine, saved = await frozen(address), list[bool]()

        async def save() -> None:
            assert conversation.facts is not None
            known = KeptConversation("c1", PromptIdentity())
            cache, profile = conversation.cache, conversation.profile
            found = await cache.save_conversation(
                address, profile, conversation.facts, conversation.key, "b1", 0, known
            )
            saved.append(found)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(save)
            await anyio.wait_all_tasks_blocked()
            engine.kill()
    assert saved == [False]
    assert {file.name: file.read_bytes() for file in conversation.slots.iterdir()} == files
    prompt = STORY + conversation.answer + " And then?"
    assert (await conversation.after_restart(prompt)).tokens == (await conversation.without_restart(prompt)).tokens


async def test_an_engine_that_is_killed_while_it_restores_is_not_given_the_file_again(tmp_path: Path) -> None:
    conversation = Conversation(tmp_path, "qwen35")
    await conversation.begin()
    async with running_engine(conversation.model, free_port(), conversation.slots) as address:
        engine, restored = await frozen(address), list[RestoreResult]()

        async def restore() -> None:
            found = await conversation.cache.restore(
                address, conversation.profile, conversation.facts, conversation.key, "b1"
            )
            restored.append(found)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(restore)
            await anyio.wait_all_tasks_blocked()
            assert list(conversation.slots.glob("*.restoring"))
            engine.kill()
    assert (restored[0].slots, restored[0].crashed) == (0, True)
    assert [file.suffix for file in conversation.slots.iterdir()] == [".engine"]


def test_the_models_are_of_every_kind(tmp_path: Path) -> None:
    facts = {name: read_facts(write_model(tmp_path / name, name)) for name in ARCHITECTURES}
    assert {name for name, each in facts.items() if each.sliding_window} == {"gemma3", "gpt-oss"}
    assert {name for name, each in facts.items() if each.recurrent} == {"mamba2", "nemotron_h", "qwen35"}
    assert [name for name, each in facts.items() if not needs_checkpoints(each)] == ["llama"]
