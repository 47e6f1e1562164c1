"""What the encoder writes is what Anthropic's own package reads, whatever the chunks were."""

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
from hostler.adapters.errors import BackendBroken, ModelUnavailable, TooManyRequests
from hostler.adapters.types import Chunk, Progress, ToolCall, Usage

words = st.text(max_size=10)
plain = st.builds(Chunk, wire=st.just("other"), text=words, reasoning=words)
#: The arguments of a tool's call, cut into two pieces somewhere.
arguments = st.tuples(st.dictionaries(words, st.integers() | words, max_size=2).map(json.dumps), st.integers(0, 5)).map(
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
def desk() -> Iterator[Any]:
    """A server that answers each request with what was put on it, and the package's client for it."""

    class Desk(ThreadingHTTPServer):
        answer = WireResponse()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            answer = server.answer
            self.send_response(answer.status)
            for name, value in (*answer.headers, ("content-type", answer.media_type)):
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = Desk(("127.0.0.1", 0), Handler)
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
def encoder(ask: Any, begin: Any) -> Any:
    def make(stream: bool, path: str = "/v1/messages") -> Any:
        body = {"model": "a", "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
        return begin(ask(path, body))

    return make


ASKED: dict[str, Any] = {"model": "a", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


def told(message: Any, said: list[Chunk], calls: list[tuple[str, str]], usage: Usage) -> None:
    """Holds a message that the package understood against what was said."""
    texts = [block.text for block in message.content if block.type == "text"]
    thoughts = [block.thinking for block in message.content if block.type == "thinking"]
    tools = [block.input for block in message.content if block.type == "tool_use"]
    assert "".join(texts) == "".join(chunk.text for chunk in said)
    assert "".join(thoughts) == "".join(chunk.reasoning for chunk in said)
    assert tools == [json.loads(first + rest) for first, rest in calls]
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == usage.prompt_tokens
    assert message.usage.output_tokens == usage.completion_tokens
    assert message.stop_reason in ("end_turn", "max_tokens", "tool_use", "refusal")


def spoken(said: list[Chunk], calls: list[tuple[str, str]], mixed: bool, usage: Usage, finish: str) -> list[Chunk]:
    """The chunks of an answer, the pieces of its calls one after the other or mixed."""
    first = [ToolCall(index=at, id=f"t{at}", name="look", arguments=one) for at, (one, _) in enumerate(calls)]
    rest = [ToolCall(index=at, arguments=two) for at, (_, two) in enumerate(calls)]
    pieces = [*first, *rest] if mixed else [piece for pair in zip(first, rest, strict=True) for piece in pair]
    called = [Chunk(wire="other", tool_calls=(piece,)) for piece in pieces]
    return [*said, *called, Chunk(wire="other", finish=finish, usage=usage)]


@fixtures_are_stateless
@given(
    said=st.lists(plain, max_size=5), calls=st.lists(arguments, max_size=3), mixed=st.booleans(), usage=counts,
    finish=reasons, waits=st.integers(0, 2),
)  # fmt: skip
def test_the_sdk_reads_any_stream(
    desk: Any, encoder: Any, said: list[Chunk], calls: list[tuple[str, str]], mixed: bool, usage: Usage, finish: str,
    waits: int,
) -> None:  # fmt: skip
    answer = encoder(True)
    signs = [answer.heartbeat(LOADING) for _ in range(waits)]
    chunks = [answer.encode(chunk) for chunk in spoken(said, calls, mixed, usage, finish)]
    body = b"".join([*signs, *chunks, answer.finish(), b": x-request-id=req-1\n\n"])
    desk.answer = WireResponse(media_type=answer.media_type, body=body)
    with desk.client.messages.stream(**ASKED) as stream:
        told(stream.get_final_message(), said, calls, usage)


@fixtures_are_stateless
@given(
    said=st.lists(plain, max_size=5), calls=st.lists(arguments, max_size=3), mixed=st.booleans(), usage=counts,
    finish=reasons,
)  # fmt: skip
def test_the_sdk_reads_any_whole_response(
    desk: Any, encoder: Any, said: list[Chunk], calls: list[tuple[str, str]], mixed: bool, usage: Usage, finish: str
) -> None:
    answer = encoder(False)
    assert [data for chunk in spoken(said, calls, mixed, usage, finish) if (data := answer.encode(chunk))] == []
    desk.answer = WireResponse(media_type=answer.media_type, body=answer.finish())
    told(desk.client.messages.create(**ASKED), said, calls, usage)


def test_the_sdk_parses_each_event_as_its_own_type(desk: Any, encoder: Any) -> None:
    answer = encoder(True)
    body = answer.heartbeat(LOADING) + answer.encode(Chunk(wire="other", text="Hi", finish="stop")) + answer.finish()
    desk.answer = WireResponse(media_type=answer.media_type, body=body)
    with desk.client.messages.create(**ASKED, stream=True) as stream:
        assert [type(event).__name__ for event in stream] == [
            "RawMessageStartEvent", "RawContentBlockStartEvent", "RawContentBlockDeltaEvent",
            "RawContentBlockStopEvent", "RawMessageDeltaEvent", "RawMessageStopEvent",
        ]  # fmt: skip


@pytest.mark.parametrize("before", [[], [Chunk(wire="other", text="Hal")]], ids=["while waiting", "in mid-word"])
def test_the_sdk_raises_an_error_in_a_stream(desk: Any, encoder: Any, before: list[Chunk]) -> None:
    answer = encoder(True)
    body = answer.heartbeat(LOADING) + b"".join(answer.encode(chunk) for chunk in before)
    desk.answer = WireResponse(media_type=answer.media_type, body=body + answer.error(BackendBroken("it broke")))
    with pytest.raises(anthropic.APIStatusError, match="it broke"), desk.client.messages.stream(**ASKED) as stream:
        stream.get_final_message()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(TooManyRequests("full", retry_after_s=3), anthropic.RateLimitError), (ModelUnavailable("b failed"), anthropic.InternalServerError)],
)  # fmt: skip
def test_the_sdk_raises_its_own_errors(desk: Any, adapter: AnthropicAdapter, error: Any, kind: type[Exception]) -> None:
    desk.answer = adapter.error_response(error)
    with pytest.raises(anthropic.APIStatusError, match=error.message) as caught:
        desk.client.messages.create(**ASKED)
    assert isinstance(caught.value, kind)


def test_the_sdk_reads_token_counts(desk: Any, encoder: Any) -> None:
    answer = encoder(False, "/v1/messages/count_tokens")
    answer.encode(Chunk(wire="other", is_body=True, usage=Usage(prompt_tokens=37)))
    desk.answer = WireResponse(body=answer.finish())
    assert desk.client.messages.count_tokens(model="a", messages=ASKED["messages"]).input_tokens == 37
