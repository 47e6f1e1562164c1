"""While a backend reads a prompt, a streaming client gets signs of life, and another backend may still answer."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.raw_backend import CHUNKED, Peer
from fakes.raw_backend import backend as raw_backend
from fakes.scripted_server import ScriptedAnswer, openai_chat
from system.fallback_chain import start_chain
from system.protocol_clients import CHATS, expected
from system.running_gateway import data_events

pytestmark = pytest.mark.anyio

EAGER = {"progress_after_s": 0, "progress_every_s": 0.02}
WORDS = ScriptedAnswer()
MARK = "reading the prompt"
PING = b":\n\n"

MODES = ("thinking", "quiet", "comments")
Serve = Callable[["Engine"], Awaitable[None]]


class Engine:
    """A backend's end of one request, with what it has been asked for."""

    def __init__(self, peer: Peer, body: dict[str, Any]) -> None:
        self._peer = peer
        self.body = body

    async def begin(self) -> None:
        await self._peer.send(CHUNKED)

    async def send(self, data: bytes) -> None:
        await self._peer.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def ping(self, times: int, data: bytes = PING) -> None:
        for _ in range(times):
            await self.send(data)
            await anyio.sleep(0.02)

    async def ping_until(self, event: anyio.Event) -> None:
        while not event.is_set():
            await self.ping(1)

    async def report(self, processed: int) -> None:
        """As llama-server does, if it was asked to."""
        if self.body.get("return_progress"):
            delta = {"index": 0, "finish_reason": None, "delta": {"role": "assistant", "content": None}}
            progress = {"total": 1000, "cache": 0, "processed": processed, "time_ms": processed}
            await self.send(event({"choices": [delta], "prompt_progress": progress}))

    async def answer(self, words: ScriptedAnswer = WORDS) -> None:
        for each in openai_chat(words, self.body):
            await self.send(each if isinstance(each, bytes) else event(each))
        await self.end()

    async def end(self) -> None:
        await self._peer.send(b"0\r\n\r\n")


def event(body: Any) -> bytes:
    return b"data: " + (body.encode() if isinstance(body, str) else json.dumps(body).encode()) + b"\n\n"


@asynccontextmanager
async def engine(serve: Serve) -> AsyncIterator[str]:
    """The URL of a backend that serves each request so."""

    async def handle(peer: Peer) -> None:
        while request := await peer.request():
            head, _, body = request.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                continue
            await serve(Engine(peer, json.loads(body)))
            return

    async with raw_backend(handle) as endpoint:
        yield f"http://127.0.0.1:{endpoint.port}"


def backend(url: str, kind: str = "llamacpp") -> dict[str, Any]:
    return {"kind": kind, "url": url, "models": {"m": "there"}}


def switching(**settings: Any) -> dict[str, Any]:
    return {"switching": {**EAGER, **settings}}


async def read_until_signs(
    http: httpx.AsyncClient, client: str, count: int, then: Callable[[], None], **body: Any
) -> httpx.Response:
    """The client's response. `then` is called when so many signs of life have arrived, and nothing else."""
    path, fields = CHATS[client][0](True)
    async with http.stream("POST", path, json={"model": "m", **fields, **body}) as response:
        pieces: list[bytes] = []
        async for piece in response.aiter_raw():
            pieces.append(piece)
            if b"".join(pieces).count(b"\n") >= 2 * count:
                then()
        # What was not known when the headers were sent follows the answer as a comment.
        content = re.sub(rb"\n\n: x-request-id=[^\n]*\n\n\Z", b"\n\n", b"".join(pieces))
        return httpx.Response(
            response.status_code, headers={"content-type": response.headers["content-type"]}, content=content
        )


@pytest.mark.parametrize("head", [False, True], ids=["before the head", "after the head"])
@pytest.mark.parametrize(
    ("client", "mode"),
    # Ollama's protocol has no comments.
    [(client, mode) for client in CHATS for mode in MODES if (client, mode) != ("ollama", "comments")],
)
async def test_every_client_gets_signs_until_the_first_token(
    tmp_path: Path, client: str, mode: str, head: bool
) -> None:
    seen = anyio.Event()

    async def serve(engine: Engine) -> None:
        if head:
            await engine.begin()
        await seen.wait()
        if not head:
            await engine.begin()
        await engine.answer()

    settings = switching(progress=mode)
    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway=settings) as chain:
        with anyio.fail_after(20):
            response = await read_until_signs(chain.http, client, 3, seen.set)
    answer = CHATS[client][1](response, True)
    answer.thoughts = "".join(line for line in answer.thoughts.splitlines(True) if not line.startswith("[hostler] "))
    assert answer == expected(WORDS)


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "x"},
    "/v1/completions": {"prompt": "x"},
    "/completion": {"prompt": "x"},
    "/api/v1/chat": {"input": "x"},
    "/api/v0/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/api/generate": {"prompt": "x"},
}


@pytest.mark.parametrize("path", ROUTES)
async def test_every_route_that_streams_has_signs_of_life(tmp_path: Path, path: str) -> None:
    received = anyio.Event()

    async def serve(engine: Engine) -> None:
        await received.wait()

    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway=switching()) as chain:
        body = {"model": "m", "stream": True, **ROUTES[path]}
        with anyio.fail_after(20):
            async with chain.http.stream("POST", path, json=body) as response:
                assert response.status_code == 200
                signs = 0
                async for _ in response.aiter_raw():
                    signs += 1
                    if signs == 3:
                        break
        received.set()


async def test_another_backend_may_answer_after_signs_of_life(tmp_path: Path) -> None:
    seen = anyio.Event()

    async def fail(engine: Engine) -> None:
        await engine.begin()
        await engine.report(100)
        await engine.ping_until(seen)

    async def serve(engine: Engine) -> None:
        await engine.begin()
        await engine.answer()

    async with engine(fail) as first, engine(serve) as second:
        backends = {"a": backend(first), "b": backend(second)}
        async with start_chain(tmp_path, backends, gateway=switching()) as chain:
            response = await read_until_signs(chain.http, "openai", 3, seen.set)
            [finished] = chain.finished
    assert finished.backend == "b"
    assert CHATS["openai"][1](response, True).words == expected(WORDS).words


async def test_the_progress_of_llama_servers_is_shown_and_kept_from_clients_that_did_not_ask(tmp_path: Path) -> None:
    seen, bodies = anyio.Event(), []

    async def serve(engine: Engine) -> None:
        bodies.append(engine.body)
        await engine.begin()
        await engine.report(250)
        await seen.wait()
        await engine.report(1000)
        await engine.answer()

    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway=switching()) as chain:
        response = await read_until_signs(chain.http, "openai", 8, seen.set)
    assert bodies[0]["return_progress"] is True
    assert "prompt_progress" not in response.text
    shown = [each["x_hostler"] for each in data_events(response.text) if "x_hostler" in each]
    assert {each["phase"] for each in shown} == {MARK}
    assert shown[-1]["percent"] == 25.0
    assert shown[-1]["eta_s"] is not None
    assert f"[hostler] {MARK} for m: 25% (1 s left)" in response.text
    assert CHATS["openai"][1](response, True).words == expected(WORDS).words


async def test_a_client_that_asks_for_the_progress_gets_it_at_once(tmp_path: Path) -> None:
    seen = anyio.Event()

    async def serve(engine: Engine) -> None:
        await engine.begin()
        await engine.report(250)
        await seen.wait()
        await engine.answer()

    late = {"progress_after_s": 600}
    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway={"switching": late}) as chain:
        response = await read_until_signs(chain.http, "openai", 1, seen.set, return_progress=True)
    assert [
        each["prompt_progress"]["processed"] for each in data_events(response.text) if "prompt_progress" in each
    ] == [250]


async def test_without_progress_the_engines_own_signs_pass_and_nothing_else(tmp_path: Path) -> None:
    seen, bodies = anyio.Event(), []

    async def serve(engine: Engine) -> None:
        bodies.append(engine.body)
        await engine.begin()
        await engine.ping_until(seen)
        await engine.answer()

    settings = switching(progress="off")
    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway=settings) as chain:
        response = await read_until_signs(chain.http, "openai", 3, seen.set)
    assert "return_progress" not in bodies[0]
    begun = b"".join(map(event_bytes, openai_chat(WORDS, bodies[0])))
    assert response.content == PING * (response.content.count(PING)) + begun


def event_bytes(each: Any) -> bytes:
    return each if isinstance(each, bytes) else event(each)


async def test_learned_speed_tells_how_long_other_backends_read(tmp_path: Path) -> None:
    seen, count = anyio.Event(), 0

    async def serve(engine: Engine) -> None:
        nonlocal count
        count += 1
        await engine.begin()
        if count == 1:
            await anyio.sleep(0.4)
        else:
            await seen.wait()
        await engine.answer()

    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url, "openai")}, gateway=switching()) as chain:
        first = await read_until_signs(chain.http, "openai", 100, lambda: None)
        second = await read_until_signs(chain.http, "openai", 6, seen.set)
    known = [each["x_hostler"]["eta_s"] for each in data_events(first.text) if "x_hostler" in each]
    learned = [each["x_hostler"]["eta_s"] for each in data_events(second.text) if "x_hostler" in each]
    assert set(known) == {None}
    assert any(each is not None for each in learned)


# Engines that only send keep-alives.

LIMITS = {"timeouts": {"first_byte_s": 0.5, "between_bytes_s": 0.2}}


async def test_keep_alives_show_that_a_long_prompt_is_read(tmp_path: Path) -> None:
    async def serve(engine: Engine) -> None:
        await engine.begin()
        await engine.ping(40)  # much longer than the limit for silence
        await engine.answer()

    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway=LIMITS) as chain:
        for stream in (True, False):
            assert (await chain.chat(stream=stream)).status_code == 200
        assert [each.outcome for each in chain.finished] == ["ok", "ok"]


#: Keep-alives as servers send them: as comments, and as events that say nothing.
KEEP_ALIVES = {
    "comment": PING,
    "ping": b"event: ping\ndata: {}\n\n",
    "typed": event({"type": "ping"}),
    "no choices": event({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}),
    "no delta": event({"choices": [{"index": 0, "delta": {}, "finish_reason": None}]}),
    "no content": event(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], "usage": None}
    ),
    "no call": event({"choices": [{"index": 0, "delta": {"content": None, "tool_calls": []}, "logprobs": None}]}),
    "same usage": event({"choices": [{"index": 0, "delta": {"content": ""}}], "usage": {"prompt_tokens": 3}}),
}


@pytest.mark.parametrize("form", KEEP_ALIVES)
@pytest.mark.parametrize("stream", [True, False])
async def test_keep_alives_alone_go_to_the_next_hop_in_the_end(tmp_path: Path, stream: bool, form: str) -> None:
    async def hang(engine: Engine) -> None:
        await engine.begin()
        await engine.ping(10_000, KEEP_ALIVES[form])

    async def serve(engine: Engine) -> None:
        await engine.begin()
        await engine.answer()

    limits = {"timeouts": {"first_byte_s": 30, "first_token_s": 0.2}}
    async with engine(hang) as first, engine(serve) as second:
        backends = {"a": backend(first), "b": backend(second)}
        async with start_chain(tmp_path, backends, gateway=limits) as chain:
            response = await chain.chat(stream=stream)
            assert response.status_code == 200
            assert [each.backend for each in chain.finished] == ["b"]


async def test_tokens_without_text_are_no_keep_alives(tmp_path: Path) -> None:
    """Where each event reports the usage, it grows."""
    tokens = 0

    async def serve(engine: Engine) -> None:
        nonlocal tokens
        await engine.begin()
        begun, *rest = [event_bytes(each) for each in openai_chat(WORDS, engine.body)]
        await engine.send(begun)
        await engine.send(rest[0])
        for tokens in range(30):  # twice the limit
            delta = {"index": 0, "delta": {"content": ""}, "finish_reason": None}
            await engine.ping(1, event({"choices": [delta], "usage": {"completion_tokens": tokens}}))
        for each in rest[1:]:
            await engine.send(each)
        await engine.end()

    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway=LIMITS) as chain:
        for stream in (True, False):
            assert (await chain.chat(stream=stream)).status_code == 200
        assert [each.outcome for each in chain.finished] == ["ok", "ok"]


@pytest.mark.parametrize("form", KEEP_ALIVES)
@pytest.mark.parametrize("client", ["openai", "ollama"])
@pytest.mark.parametrize("stream", [True, False])
async def test_keep_alives_alone_after_some_words_break_the_answer(
    tmp_path: Path, stream: bool, client: str, form: str
) -> None:
    gone = anyio.Event()

    async def serve(engine: Engine) -> None:
        await engine.begin()
        events: Iterable[Any] = list(openai_chat(WORDS, engine.body))[:3]
        for each in events:
            await engine.send(event_bytes(each))
        try:
            await engine.ping(10_000, KEEP_ALIVES[form])
        finally:
            gone.set()

    async with engine(serve) as url, start_chain(tmp_path, {"a": backend(url)}, gateway=LIMITS) as chain:
        path, fields = CHATS[client][0](stream)
        with anyio.fail_after(20):
            response = await chain.http.post(path, json={"model": "m", **fields})
            await gone.wait()
        assert '"error"' in response.text if stream else response.status_code >= 500
        assert [each.outcome for each in chain.finished] == ["broken" if stream else "failed"]
