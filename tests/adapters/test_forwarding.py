"""Between a client and a backend of one protocol every byte passes as it came: comments, blank lines, media types."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Incoming
from hostler.adapters.canonical import ResponseHead
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream

Transcript = Callable[[str], bytes]

CHAT = b'{"model":"there","stream":%b,"messages":[{"role":"user","content":"Hi"}]}'
PROMPT = b'{"model":"smollm2","stream":%b,"prompt":"Hi"}'
# Adapter, upstream, path, request body, folder, and the names of the stream and the whole response.
CASES: dict[str, tuple[Any, Any, str, bytes, str, str]] = {
    "openai": (OpenAIAdapter, OpenAIUpstream, "/v1/chat/completions", CHAT, "openai/chat.sse", "openai/chat.json"),
    "completions": (
        *(OpenAIAdapter, OpenAIUpstream, "/v1/completions", PROMPT),
        *("openai/completions.sse", "openai/completions.json"),
    ),
    "openrouter": (
        *(OpenAIAdapter, OpenAIUpstream, "/v1/chat/completions", CHAT),
        *("openai/openrouter.sse", "openai/chat.json"),
    ),
    "anthropic": (
        *(AnthropicAdapter, AnthropicUpstream, "/v1/messages", CHAT),
        *("anthropic/anthropic.sse", "anthropic/anthropic.json"),
    ),
    "llamacpp": (
        *(LlamaCppAdapter, LlamaCppUpstream, "/completion", PROMPT),
        *("llamacpp/completion.sse", "llamacpp/completion.json"),
    ),
    "ollama": (OllamaAdapter, OllamaUpstream, "/api/chat", CHAT, "ollama/chat.ndjson", "ollama/chat.json"),
}
STREAMS = st.sampled_from(sorted(CASES))
fixtures_are_stateless = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=100, deadline=None
)


def result(name: str, segments: list[bytes], head: ResponseHead, *, stream: bool) -> tuple[bytes, str]:
    """The bytes and the media type that a client gets when the backend sends this."""
    kind, protocol, path, question, _, _ = CASES[name]
    adapter, upstream = kind(), protocol()
    operation = next(each for each in adapter.operations if each.path == path)
    body = question % (b"true" if stream else b"false")
    request = adapter.decode(operation, Incoming(method="POST", path=path, body=body))
    encoder = adapter.encoder(request, response_id="req-1", created=1, progress="off")
    parser = upstream.parser(request, fields=False)
    parser.start(head)
    encoder.start(head)
    sent = [encoder.encode(chunk) for segment in segments for chunk in parser.feed(segment)]
    sent += [encoder.encode(chunk) for chunk in parser.finish()]
    return b"".join([*sent, encoder.finish()]), encoder.media_type


def streamed(name: str) -> ResponseHead:
    return ResponseHead(media_type="application/x-ndjson" if name == "ollama" else "text/event-stream; charset=utf-8")


@fixtures_are_stateless
@given(name=STREAMS, places=st.lists(st.integers(0, 10_000), max_size=20))
def test_a_stream_is_forwarded_byte_for_byte(transcript: Transcript, name: str, places: list[int]) -> None:
    stream = transcript(CASES[name][4])
    edges = [0, *sorted({place % len(stream) for place in places}), len(stream)]
    segments = [stream[a:b] for a, b in pairwise(edges)]
    assert result(name, segments, streamed(name), stream=True) == (stream, streamed(name).media_type)


@fixtures_are_stateless
@given(
    name=STREAMS.filter(lambda name: name != "ollama"),
    remarks=st.lists(st.tuples(st.integers(0, 50), st.sampled_from([b":\n\n", b": still\n: here\n\n", b": x\n"]))),
    together=st.booleans(),
)
def test_comments_stay_in_their_places(
    transcript: Transcript, name: str, remarks: list[tuple[int, bytes]], together: bool
) -> None:
    events = [event + b"\n\n" for event in transcript(CASES[name][4]).split(b"\n\n")[:-1]]
    for place, remark in remarks:
        at = place % (len(events) + 1)
        if remark.endswith(b"\n\n") or at < len(events):  # a comment line belongs to the event after it
            events.insert(at, remark)
    stream = b"".join(events)
    segments = [stream] if together else events
    assert result(name, segments, streamed(name), stream=True) == (stream, streamed(name).media_type)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8"])
def test_a_whole_response_is_forwarded_byte_for_byte(transcript: Transcript, name: str, media_type: str) -> None:
    body = transcript(CASES[name][5])
    head = ResponseHead(media_type=media_type, length=len(body))
    assert result(name, [body[:7], body[7:]], head, stream=False) == (body, media_type)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"ollama"}))
def test_comments_alone_start_no_response(name: str) -> None:
    kind, protocol, path, question, _, _ = CASES[name]
    adapter = kind()
    operation = next(each for each in adapter.operations if each.path == path)
    request = adapter.decode(operation, Incoming(method="POST", path=path, body=question % b"true"))
    parser = protocol().parser(request, fields=False)
    parser.start(streamed(name))
    assert [chunk for _ in range(100_000) for chunk in parser.feed(b": still here\n\n")] == []
