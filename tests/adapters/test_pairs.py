"""Every protocol's own parser reads what its encoder writes, and nothing is lost.

Also across two protocols: what is read in one can be written in any other and read again, wherever the bytes are cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.anthropic.response_parser import AnthropicParser
from hostler.adapters.base import Adapter, Encoder, Incoming, Parser
from hostler.adapters.canonical import Chunk, Progress, Request, ResponseHead, ToolCall, Usage
from hostler.adapters.errors import BackendBroken
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.llamacpp.response_parser import LlamaCppParser
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.ollama.response_parser import OllamaParser
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.response_parser import OpenAIParser

HELLO = [{"role": "user", "content": "Hello"}]


class ProtocolForm(msgspec.Struct, frozen=True):
    """One form of a protocol: its adapter, the path, the body, and the parser for what is encoded."""

    adapter: Adapter
    path: str
    body: dict[str, Any]
    parser: Callable[[], Parser]

    def request(self, *, stream: bool) -> Request:
        operation = next(each for each in self.adapter.operations if each.path == self.path)
        body = json.dumps({"model": "m", "stream": stream, **self.body}).encode()
        return self.adapter.decode(operation, Incoming(method="POST", path=self.path, body=body))


CHATS = {
    "openai": ProtocolForm(
        OpenAIAdapter(), "/v1/chat/completions", {"messages": HELLO, "stream_options": {"include_usage": True}},
        lambda: OpenAIParser("chat", fields=True),
    ),
    "ollama": ProtocolForm(OllamaAdapter(), "/api/chat", {"messages": HELLO}, lambda: OllamaParser("chat")),
    "anthropic": ProtocolForm(
        AnthropicAdapter(), "/v1/messages", {"messages": HELLO, "max_tokens": 9}, lambda: AnthropicParser(fields=True)
    ),
}  # fmt: skip
PROMPTS = {
    "openai": ProtocolForm(
        OpenAIAdapter(), "/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}},
        lambda: OpenAIParser("completions", fields=True),
    ),
    "ollama": ProtocolForm(
        OllamaAdapter(), "/api/generate", {"prompt": "x", "raw": True}, lambda: OllamaParser("generate")
    ),
}  # fmt: skip
NATIVE = ProtocolForm(LlamaCppAdapter(), "/completion", {"prompt": "x"}, lambda: LlamaCppParser(responses=1))

texts = st.text(min_size=1, max_size=8)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,9}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
arguments = st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=3)
LOADING = Progress(phase="loading", model="m", percent=40.0, eta_s=3.0)


class Content(msgspec.Struct):
    """The content of a response."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = []
    finish: str | None = None
    counts: tuple[int, int] | None = None


def content_of(chunks: Iterable[Chunk]) -> Content:
    content, calls = Content(), dict[int, list[str]]()
    for chunk in chunks:
        content.text += chunk.text
        content.reasoning += chunk.reasoning
        for call in chunk.tool_calls:
            known = calls.setdefault(call.index, ["", ""])
            known[0] += call.name or ""
            known[1] += call.arguments
        content.finish = chunk.finish or content.finish
        if chunk.usage is not None:
            content.counts = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    content.calls = [(name, json.loads(arguments or "{}")) for name, arguments in calls.values()]
    return content


@st.composite
def responses(draw: st.DrawFn, *, plain: bool = False) -> list[Chunk]:
    """The chunks of a response: reasoning and text in any order, calls in fragments, a finish, and usage."""
    reasoning_chunks = st.builds(lambda text: Chunk(reasoning=text), texts)
    text_chunks = st.builds(lambda text: Chunk(text=text), texts)
    chunks = draw(st.lists(text_chunks if plain else reasoning_chunks | text_chunks, max_size=6))
    tool_calls = [] if plain else draw(st.lists(st.tuples(names, arguments), max_size=3))
    for index, (name, given_arguments) in enumerate(tool_calls):
        text = json.dumps(given_arguments, ensure_ascii=draw(st.booleans()))
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        first, *rest = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        chunks.append(Chunk(tool_calls=(ToolCall(index=index, id=f"call_{index}", name=name, arguments=first),)))
        chunks += [Chunk(tool_calls=(ToolCall(index=index, arguments=piece),)) for piece in rest]
    finish = "tool_calls" if tool_calls else draw(st.sampled_from(["stop", "length"]))
    usage = Usage(prompt_tokens=draw(st.integers(1, 9999)), completion_tokens=draw(st.integers(1, 9999)))
    # Some send the usage with the finish, some after it.
    together = draw(st.booleans())
    chunks.append(Chunk(finish=finish, usage=usage if together else None))
    return chunks if together else [*chunks, Chunk(usage=usage)]


def encode(
    protocol: ProtocolForm, chunks: Iterable[Chunk], *, stream: bool, beats: int = 0
) -> tuple[ResponseHead, bytes]:
    """The bytes that a client of this protocol gets."""
    request = protocol.request(stream=stream)
    encoder: Encoder = protocol.adapter.encoder(request, response_id="id-1", created=1_700_000_000, progress="thinking")
    parts = [encoder.heartbeat(LOADING) for _ in range(beats)]
    encoder.start(ResponseHead(media_type="text/event-stream"))
    parts += [encoder.encode(chunk) for chunk in chunks]
    parts.append(encoder.finish())
    body = b"".join(parts)
    return ResponseHead(media_type=encoder.media_type, length=None if stream else len(body)), body


def parse(protocol: ProtocolForm, head: ResponseHead, body: bytes, cuts: Iterable[int] = ()) -> list[Chunk]:
    """The chunks that the protocol's own parser reads, in segments cut at these places."""
    parser = protocol.parser()
    parser.start(head)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    chunks = [chunk for start, end in pairwise(places) for chunk in parser.feed(body[start:end])]
    return [*chunks, *parser.finish()]


cuts = st.lists(st.integers(0, 100_000), max_size=8)
each_mode = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@each_mode
@pytest.mark.parametrize("second", CHATS)
@pytest.mark.parametrize("first", CHATS)
@settings(max_examples=40)
@given(response=responses(), places=cuts)
def test_a_chat_survives_any_two_protocols(
    first: str, second: str, stream: bool, response: list[Chunk], places: list[int]
) -> None:
    there = parse(CHATS[first], *encode(CHATS[first], response, stream=stream), places)
    assert content_of(there) == content_of(response)
    # As in the gateway: bytes are forwarded only to clients of the same protocol.
    foreign = [msgspec.structs.replace(chunk, wire="", raw=b"", is_body=False) for chunk in there]
    back = parse(CHATS[second], *encode(CHATS[second], foreign, stream=stream), places)
    assert content_of(back) == content_of(response)


@each_mode
@pytest.mark.parametrize("second", PROMPTS)
@pytest.mark.parametrize("first", PROMPTS)
@settings(max_examples=40)
@given(response=responses(plain=True), places=cuts)
def test_a_continued_prompt_survives_any_two_protocols(
    first: str, second: str, stream: bool, response: list[Chunk], places: list[int]
) -> None:
    there = parse(PROMPTS[first], *encode(PROMPTS[first], response, stream=stream), places)
    assert content_of(there) == content_of(response)
    foreign = [msgspec.structs.replace(chunk, wire="", raw=b"", is_body=False) for chunk in there]
    back = parse(PROMPTS[second], *encode(PROMPTS[second], foreign, stream=stream), places)
    assert content_of(back) == content_of(response)


@settings(max_examples=60)
@given(response=responses(plain=True), places=cuts)
def test_a_native_stream_survives_its_own_parser(response: list[Chunk], places: list[int]) -> None:
    head, body = encode(NATIVE, response, stream=True)
    chunks = parse(NATIVE, head, body, places)
    assert b"".join(chunk.raw for chunk in chunks) == body
    result = [json.loads(line[5:]) for line in body.split(b"\n") if line.startswith(b"data:")]
    assert "".join(event["content"] for event in result) == content_of(response).text
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == content_of(response).counts


@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=40)
@given(response=responses(), places=cuts, beats=st.integers(1, 4))
def test_comments_before_a_response_change_nothing_in_it(
    name: str, response: list[Chunk], places: list[int], beats: int
) -> None:
    head, body = encode(CHATS[name], response, stream=True, beats=beats)
    assert (b"loading m" in body) == (name != "ollama")
    content = content_of(parse(CHATS[name], head, body, places))
    shown = [line for line in content.reasoning.split("\n") if line.startswith("[hostler] ")]
    content.reasoning = content.reasoning.removeprefix("".join(f"{line}\n" for line in shown))
    assert content == content_of(response)


@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=60)
@given(response=responses(), data=st.data())
def test_a_truncated_stream_is_never_complete(name: str, response: list[Chunk], data: st.DataObject) -> None:
    head, body = encode(CHATS[name], response, stream=True)
    cut = data.draw(st.integers(0, len(body) - 1))
    try:
        content = content_of(parse(CHATS[name], head, body[:cut]))
    except BackendBroken:
        return
    # Only the end mark may be missing.
    assert (content.text, content.calls, content.finish) == (
        content_of(response).text,
        content_of(response).calls,
        content_of(response).finish,
    )
