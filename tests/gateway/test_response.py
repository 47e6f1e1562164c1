"""What a client receives, and when it hears who answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from fakes.requests import make_context

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.base import Adapter, Incoming
from hostler.adapters.canonical import Chunk, Progress, ResponseHead
from hostler.adapters.errors import ModelUnavailable
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.gateway.context import Target
from hostler.gateway.response import ResponseWriter
from hostler.gateway.serving_headers import ServingHeaders

pytestmark = pytest.mark.anyio

BODIES = {
    "chat": b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": true, "max_tokens": 5}',
    "responses": b'{"model": "m", "input": "x", "stream": true}',
}
NAMES = {"messages": BODIES["chat"], **BODIES}


class Client:
    """A client of one streamed answer, with what it has received."""

    def __init__(self, adapter: Adapter, operation: str) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        route = next(each for each in adapter.operations if each.name == operation)
        incoming = Incoming(method="POST", path=route.path, body=NAMES[operation], query="", path_params={}, headers={})
        self.request = adapter.decode(route, incoming)
        self.facts = ServingHeaders("req-1")
        self.context = self.facts.context = make_context()
        self.writer = ResponseWriter(self.send, self.facts)
        self.writer.use(adapter.encoder(self.request, response_id="req-1", created=0, progress="comments"))
        self.start("first", 0)

    def start(self, backend: str, hop: int) -> None:
        """Another backend is tried, after a wait."""
        attempt = self.context.begin_attempt(Target(backend=backend, model="m", name_there="m"), hop=hop, now=0.0)
        attempt.queue_s = 5.0

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.headers = dict(message["headers"])
        else:
            self.body += message["body"]


def client_of(protocol: str) -> Client:
    adapters: dict[str, tuple[Adapter, str]] = {
        "openai": (OpenAIAdapter(), "chat"),
        "responses": (OpenAIAdapter(), "responses"),
        "anthropic": (AnthropicAdapter(), "messages"),
        "ollama": (OllamaAdapter(), "chat"),
    }
    return Client(*adapters[protocol])


SAY = Chunk(wire="other", text="hello", finish="stop")


@pytest.mark.parametrize("protocol", ["openai", "responses", "anthropic", "ollama"])
async def test_headers_of_a_stream_without_progress_name_who_answers(protocol: str) -> None:
    client = client_of(protocol)
    client.writer.begin(ResponseHead())
    await client.writer.write(SAY)
    await client.writer.end()
    assert (client.headers[b"x-hostler-backend"], client.headers[b"x-hostler-queue-ms"]) == (b"first", b"5000")
    assert b"x-hostler" not in client.body


@pytest.mark.parametrize("protocol", ["openai", "responses", "anthropic"])
async def test_after_progress_a_comment_before_the_first_token_names_who_answers(protocol: str) -> None:
    client = client_of(protocol)
    await client.writer.heartbeat(Progress(phase="queued", model="m", waited_s=1.0))
    assert not [name for name in client.headers if name.startswith(b"x-hostler")]
    client.start("second", 1)
    client.writer.begin(ResponseHead())
    await client.writer.write(SAY)
    named, _, _ = client.body.partition(b"hello")
    assert b": x-request-id=req-1 x-hostler-backend=second x-hostler-model=m x-hostler-hop=1" in named
    assert b"x-hostler-queue-ms=10000" in named and b"first" not in named
    await client.writer.end()
    assert client.body.count(b"x-hostler-backend=second") == 2


async def test_lines_have_no_comments() -> None:
    client = client_of("ollama")
    await client.writer.heartbeat(Progress(phase="queued", model="m", waited_s=1.0))
    client.writer.begin(ResponseHead())
    await client.writer.write(SAY)
    await client.writer.end()
    assert all(line.startswith(b"{") for line in client.body.splitlines())


async def test_a_refusal_says_where_it_failed() -> None:
    client = client_of("openai")
    error = ModelUnavailable("x")
    await client.writer.fail(error, OpenAIAdapter().error_response(error))
    assert client.headers[b"x-hostler-backend"] == b"first"


class SlowClient(Client):
    """A client that reads nothing until it is told to."""

    def __init__(self, adapter: Adapter, operation: str) -> None:
        self.reads, self.reached = anyio.Event(), anyio.Event()
        super().__init__(adapter, operation)

    async def send(self, message: Any) -> None:
        self.reached.set()
        await self.reads.wait()
        await super().send(message)


LOADING = Progress(phase="loading", model="m")
Ending = Callable[[ResponseWriter], Awaitable[None]]


async def _answer(writer: ResponseWriter) -> None:
    await writer.write(SAY)
    await writer.end()


async def _fail(writer: ResponseWriter) -> None:
    error = ModelUnavailable("x")
    await writer.fail(error, OpenAIAdapter().error_response(error))


async def _sign(writer: ResponseWriter) -> None:
    await writer.sign(b": theirs\n\n")
    await writer.end()


@pytest.mark.parametrize("ending", [_answer, _fail, _sign])
async def test_what_follows_a_sign_of_life_waits_until_it_is_sent(ending: Ending) -> None:
    client = SlowClient(OpenAIAdapter(), "chat")
    client.writer.begin(ResponseHead())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.writer.heartbeat, LOADING)
        await client.reached.wait()
        tasks.start_soon(ending, client.writer)
        await anyio.wait_all_tasks_blocked()
        await client.writer.heartbeat(LOADING)  # one is enough
        client.reads.set()
    assert client.body.startswith(b": [hostler] loading m\n")
    assert client.body.count(b"[hostler]") == 1
    assert client.writer.ended


@pytest.mark.parametrize("ending", [_answer, _fail])
async def test_there_are_no_signs_of_life_once_the_answer_or_its_end_has_begun(ending: Ending) -> None:
    client = client_of("openai")
    client.writer.begin(ResponseHead())
    await ending(client.writer)
    body = client.body
    await client.writer.heartbeat(LOADING)
    assert client.body == body


async def test_a_backends_own_sign_commits_nothing() -> None:
    client = client_of("openai")
    client.writer.begin(ResponseHead())
    await client.writer.sign(b": theirs\n\n")
    assert (client.writer.started, client.writer.committed, client.body) == (True, False, b": theirs\n\n")
