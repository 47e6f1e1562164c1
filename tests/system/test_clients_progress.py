"""The official packages read streams of models that load slowly, with progress before the answer."""

from __future__ import annotations

from typing import Any

import anthropic
import ollama
import openai
import pytest
from system.running_gateway import StartGateway

PROFILES: dict[str, Any] = {"a": {"script": {"ready_after": 3.0, "reasoning": 1}}}
EAGER = {"switching": {"progress_after_s": 0, "progress_every_s": 0.5}}
QUESTION: Any = [{"role": "user", "content": "Hello"}]
THOUGHT, WORDS = "word0 ", "word1 word2 word3 word4 "

pytestmark = pytest.mark.anyio


async def test_openais_package(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(PROFILES, gateway=EAGER) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="a", messages=QUESTION, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == WORDS
    shown = "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas).splitlines()
    assert all(line.startswith("[hostler] ") for line in shown[:-1])
    assert sum("loading a" in line for line in shown) >= 4
    assert shown[-1] == THOUGHT


async def test_anthropics_package(start_gateway: StartGateway) -> None:
    async with (
        start_gateway(PROFILES, gateway=EAGER) as gateway,
        anthropic.AsyncAnthropic(base_url=gateway.url, api_key="unused", max_retries=0) as client,
        client.messages.stream(model="a", messages=QUESTION, max_tokens=100) as stream,
    ):
        words = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(words) == WORDS
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 5)


async def test_ollamas_package(start_gateway: StartGateway) -> None:
    async with start_gateway(PROFILES, gateway=EAGER) as gateway:
        client = ollama.AsyncClient(host=gateway.url)
        try:
            parts = [part async for part in await client.chat(model="a", messages=QUESTION, stream=True)]
        finally:
            await client._client.aclose()
    assert "".join(part.message.content or "" for part in parts) == WORDS
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].load_duration or 0) >= 2_900_000_000
