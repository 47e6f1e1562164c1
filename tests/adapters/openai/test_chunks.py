"""OpenAI's responses decoded to chunks."""

from __future__ import annotations

from collections.abc import Callable

from hostler.adapters.canonical import Chunk, Usage

Parse = Callable[..., list[Chunk]]


Transcript = Callable[[str], bytes]


def test_usage_comes_from_usage_and_timings(parse: Parse, transcript: Transcript) -> None:
    usage = [chunk.usage for chunk in parse([transcript("openai/chat.sse")]) if chunk.usage]
    assert usage == [
        Usage(prompt_tokens=32, completion_tokens=6, cached_tokens=31, prompt_ms=7.403, completion_ms=37.624)
    ]
    timed = [chunk.usage for chunk in parse([transcript("openai/chat-no-usage.sse")]) if chunk.usage]
    assert (timed[0].prompt_tokens, timed[0].cached_tokens, timed[0].completion_tokens) == (32, 31, 6)
    cloud = [chunk.usage for chunk in parse([transcript("openai/openrouter.sse")]) if chunk.usage]
    assert (cloud[0].cost, cloud[0].reasoning_tokens, cloud[0].cached_tokens) == (0.000012, 3, 4)


def test_fields_are_decoded_on_request(parse: Parse, transcript: Transcript) -> None:
    chunks = parse([transcript("openai/tools.sse")], fields=True)
    calls = [call for chunk in chunks for call in chunk.tool_calls]
    assert (calls[0].name, "".join(call.arguments for call in calls)) == ("get_weather", '{"city": "Berlin"}')
    tokens = [token for chunk in parse([transcript("openai/choices.sse")], fields=True) for token in chunk.logprobs]
    assert (tokens[0].token, tokens[0].top[1].token) == ("I", "Hello")
    thought = parse([transcript("openai/openrouter.sse")], fields=True)
    assert ("".join(c.reasoning for c in thought), "".join(c.text for c in thought)) == ("Let me", "Hi")
