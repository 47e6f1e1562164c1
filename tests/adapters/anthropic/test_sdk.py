"""Anthropic's SDK reads what the encoder writes, whatever the chunks are."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.base import WireResponse
from hostler.adapters.canonical import Chunk, Progress, ToolCall, Usage
from hostler.adapters.errors import BackendBroken, ModelUnavailable, TooManyRequests

texts = st.text(max_size=10)
plain = st.builds(Chunk, wire=st.just("other"), text=texts, reasoning=texts)
#: The arguments of a tool call, cut into two pieces.
arguments = st.tuples(st.dictionaries(texts, st.integers() | texts, max_size=2).map(json.dumps), st.integers(0, 5)).map(
    lambda cut: (cut[0][: cut[1]], cut[0][cut[1] :])
)
counts = st.builds(
    Usage, prompt_tokens=st.integers(5, 9), cached_tokens=st.integers(0, 5), completion_tokens=st.integers(0, 9)
)
reasons = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])
fixtures_are_stateless = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=30
)
LOADING = Progress(phase="loading", model="b", percent=1.0)


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    """A server that answers each request with its `response`, and an SDK client for it."""

    class FakeAPI(ThreadingHTTPServer):
        response = WireResponse()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            response = server.response
            self.send_response(response.status)
            for name, value in (*response.headers, ("content-type", response.media_type)):
                self.send_header(name, value)
            self.send_header("content-length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = FakeAPI(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{server.server_port}", api_key="unused", max_retries=0
    ) as server.client:
        yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def encoder(decode_request: Any, start_encoder: Any) -> Any:
    def make(stream: bool, path: str = "/v1/messages") -> Any:
        body = {"model": "a", "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
        return start_encoder(decode_request(path, body))

    return make


REQUEST: dict[str, Any] = {"model": "a", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


def check_message(message: Any, content: list[Chunk], calls: list[tuple[str, str]], usage: Usage) -> None:
    """Compares the SDK's message with the chunks."""
    texts = [block.text for block in message.content if block.type == "text"]
    thoughts = [block.thinking for block in message.content if block.type == "thinking"]
    tools = [block.input for block in message.content if block.type == "tool_use"]
    assert "".join(texts) == "".join(chunk.text for chunk in content)
    assert "".join(thoughts) == "".join(chunk.reasoning for chunk in content)
    assert tools == [json.loads(first + rest) for first, rest in calls]
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == usage.prompt_tokens
    assert message.usage.output_tokens == usage.completion_tokens
    assert message.stop_reason in ("end_turn", "max_tokens", "tool_use", "refusal")


def response_chunks(
    content: list[Chunk], calls: list[tuple[str, str]], mixed: bool, usage: Usage, finish: str
) -> list[Chunk]:
    """The chunks of a response, the pieces of its calls in sequence or interleaved."""
    first = [ToolCall(index=at, id=f"t{at}", name="look", arguments=one) for at, (one, _) in enumerate(calls)]
    rest = [ToolCall(index=at, arguments=two) for at, (_, two) in enumerate(calls)]
    pieces = [*first, *rest] if mixed else [piece for pair in zip(first, rest, strict=True) for piece in pair]
    call_chunks = [Chunk(wire="other", tool_calls=(piece,)) for piece in pieces]
    return [*content, *call_chunks, Chunk(wire="other", finish=finish, usage=usage)]


@fixtures_are_stateless
@given(
    content=st.lists(plain, max_size=5), calls=st.lists(arguments, max_size=3), mixed=st.booleans(), usage=counts,
    finish=reasons, waits=st.integers(0, 2),
)  # fmt: skip
def test_the_sdk_reads_any_stream(
    api: Any, encoder: Any, content: list[Chunk], calls: list[tuple[str, str]], mixed: bool, usage: Usage, finish: str,
    waits: int,
) -> None:  # fmt: skip
    message_encoder = encoder(True)
    heartbeats = [message_encoder.heartbeat(LOADING) for _ in range(waits)]
    chunks = [message_encoder.encode(chunk) for chunk in response_chunks(content, calls, mixed, usage, finish)]
    body = b"".join([*heartbeats, *chunks, message_encoder.finish(), b": x-request-id=req-1\n\n"])
    api.response = WireResponse(media_type=message_encoder.media_type, body=body)
    with api.client.messages.stream(**REQUEST) as stream:
        check_message(stream.get_final_message(), content, calls, usage)


@fixtures_are_stateless
@given(
    content=st.lists(plain, max_size=5), calls=st.lists(arguments, max_size=3), mixed=st.booleans(), usage=counts,
    finish=reasons,
)  # fmt: skip
def test_the_sdk_reads_any_whole_response(
    api: Any, encoder: Any, content: list[Chunk], calls: list[tuple[str, str]], mixed: bool, usage: Usage, finish: str
) -> None:
    message_encoder = encoder(False)
    assert [
        data
        for chunk in response_chunks(content, calls, mixed, usage, finish)
        if (data := message_encoder.encode(chunk))
    ] == []
    api.response = WireResponse(media_type=message_encoder.media_type, body=message_encoder.finish())
    check_message(api.client.messages.create(**REQUEST), content, calls, usage)


def test_the_sdk_parses_each_event_as_its_own_type(api: Any, encoder: Any) -> None:
    message_encoder = encoder(True)
    body = (
        message_encoder.heartbeat(LOADING)
        + message_encoder.encode(Chunk(wire="other", text="Hi", finish="stop"))
        + message_encoder.finish()
    )
    api.response = WireResponse(media_type=message_encoder.media_type, body=body)
    with api.client.messages.create(**REQUEST, stream=True) as stream:
        assert [type(event).__name__ for event in stream] == [
            "RawMessageStartEvent", "RawContentBlockStartEvent", "RawContentBlockDeltaEvent",
            "RawContentBlockStopEvent", "RawMessageDeltaEvent", "RawMessageStopEvent",
        ]  # fmt: skip


@pytest.mark.parametrize("before", [[], [Chunk(wire="other", text="Hal")]], ids=["while waiting", "in mid-word"])
def test_the_sdk_raises_an_error_in_a_stream(api: Any, encoder: Any, before: list[Chunk]) -> None:
    message_encoder = encoder(True)
    body = message_encoder.heartbeat(LOADING) + b"".join(message_encoder.encode(chunk) for chunk in before)
    api.response = WireResponse(
        media_type=message_encoder.media_type, body=body + message_encoder.error(BackendBroken("it broke"))
    )
    with pytest.raises(anthropic.APIStatusError, match="it broke"), api.client.messages.stream(**REQUEST) as stream:
        stream.get_final_message()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(TooManyRequests("full", retry_after_s=3), anthropic.RateLimitError), (ModelUnavailable("b failed"), anthropic.InternalServerError)],
)  # fmt: skip
def test_the_sdk_raises_its_own_errors(api: Any, adapter: AnthropicAdapter, error: Any, kind: type[Exception]) -> None:
    api.response = adapter.error_response(error)
    with pytest.raises(anthropic.APIStatusError, match=error.message) as caught:
        api.client.messages.create(**REQUEST)
    assert isinstance(caught.value, kind)


def test_the_sdk_reads_token_counts(api: Any, encoder: Any) -> None:
    message_encoder = encoder(False, "/v1/messages/count_tokens")
    message_encoder.encode(Chunk(wire="other", is_body=True, usage=Usage(prompt_tokens=37)))
    api.response = WireResponse(body=message_encoder.finish())
    assert api.client.messages.count_tokens(model="a", messages=REQUEST["messages"]).input_tokens == 37
