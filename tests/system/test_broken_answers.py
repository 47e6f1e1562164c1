"""What is no answer is none in any protocol, although its status is 200; what is one is read whatever its label says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.scripted_server import (
    ScriptedAnswer,
    ScriptedServer,
    anthropic_messages,
    ollama_chat,
    openai_chat,
    openai_embeddings,
    openai_response,
    start_scripted_server,
)
from fakes.server_errors import NO_ANSWERS
from system.fallback_chain import fact, start_chain
from system.protocol_clients import CHATS, expected

pytestmark = pytest.mark.anyio

each_chat = pytest.mark.parametrize("client", CHATS)
each_mode = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])

WORDS = ScriptedAnswer()

TURNS = [{"role": "user", "content": "Hello"}]
#: Routes that generate a text, besides those of `CHATS`.
OTHER_ROUTES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "Hello"},
    "/v1/completions": {"prompt": "Hello"},
    "/api/generate": {"prompt": "Hello"},
    "/completion": {"prompt": "Hello"},
    "/api/v1/chat": {"input": "Hello"},
    "/api/v0/chat/completions": {"messages": TURNS},
}
#: Routes that answer in JSON and generate no text.
JSON_ROUTES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "Hello"},
    "/api/embed": {"input": "Hello"},
    "/api/embeddings": {"prompt": "Hello"},
    "/api/v0/embeddings": {"input": "Hello"},
    "/embedding": {"content": "Hello"},
    "/v1/rerank": {"query": "q", "documents": ["a", "b"]},
    "/rerank": {"query": "q", "documents": ["a", "b"]},
    "/v1/messages/count_tokens": {"messages": TURNS},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/tokenize": {"content": "Hello"},
    "/apply-template": {"messages": TURNS},
    "/v1/moderations": {"input": "Hello"},
    "/v1/images/generations": {"prompt": "Hello"},
}
#: Servers differ in what these contain; but no server answers so.
ANY_DATA = frozenset({"/v1/moderations", "/v1/images/generations"})
NEVER_RIGHT = frozenset(
    {"empty", "login page", "login page as JSON", "text", "cut JSON", "null", "empty object", "an error"}
)
SSE, LINES, JSON = "text/event-stream", "application/x-ndjson", "application/json"

ERRORS_AS_ANSWERS = {
    "an error": (JSON, b'{"error":"bad image"}'),
    "a flat error": (JSON, b'{"object":"error","message":"bad image","type":"BadRequestError","code":400}'),
    "a listed error": (JSON, b'[{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"bad image"}}]'),
    "a flat error in a stream": (SSE, b'data: {"object":"error","message":"bad image","code":400}\n\n'),
}


def backend(url: str, kind: str = "openai") -> dict[str, Any]:
    return {"kind": kind, "url": url, "models": {"m": "there"}}


async def ask(http: httpx.AsyncClient, client: str, *, stream: bool) -> httpx.Response:
    path, body = CHATS[client][0](stream)
    return await http.post(path, json={"model": "m", **body})


def sse_of(events: Iterable[Any]) -> bytes:
    return b"".join(
        b"data: " + (each.encode() if isinstance(each, str) else json.dumps(each).encode()) + b"\n\n" for each in events
    )


def whole_of(events: Iterable[Any]) -> bytes:
    return json.dumps(next(iter(events))).encode()


#: A right answer of each kind of backend, streamed and whole, with its label.
ANSWERS = {
    ("openai", True): (SSE, sse_of(openai_chat(WORDS, {"stream": True, "stream_options": {"include_usage": True}}))),
    ("openai", False): (JSON, whole_of(openai_chat(WORDS, {}))),
    ("llamacpp", True): (SSE, sse_of(openai_chat(WORDS, {"stream": True, "stream_options": {"include_usage": True}}))),
    ("anthropic", True): (SSE, sse_of(anthropic_messages(WORDS, {"stream": True}))),
    ("anthropic", False): (JSON, whole_of(anthropic_messages(WORDS, {}))),
    ("ollama", True): (LINES, b"".join(json.dumps(line).encode() + b"\n" for line in ollama_chat(WORDS, {"messages": 1}))),
    ("ollama", False): (JSON, whole_of(ollama_chat(WORDS, {"messages": 1, "stream": False}))),
}  # fmt: skip


@each_mode
@each_chat
async def test_what_is_no_answer_goes_to_the_next_hop(tmp_path: Path, client: str, stream: bool) -> None:
    async with start_scripted_server() as first, start_scripted_server() as second:
        backends = {"first": backend(first.url), "second": backend(second.url)}
        async with start_chain(tmp_path, backends, breaker={"failures": 1000}) as chain:
            for name, (media_type, body) in NO_ANSWERS.items():
                first.prepared = [(200, media_type, body)] * 2
                response = await ask(chain.http, client, stream=stream)
                assert response.status_code == 200, (name, response.text)
                assert response.headers["x-hostler-backend"] == "second", name
                assert CHATS[client][1](response, stream) == expected(WORDS), name


@each_mode
@each_chat
async def test_what_is_no_answer_is_an_error_without_another_hop(tmp_path: Path, client: str, stream: bool) -> None:
    async with start_scripted_server() as server:
        chain_of_one = start_chain(tmp_path, {"pc": backend(server.url)}, breaker={"failures": 1000})
        async with chain_of_one as chain:
            await _all_fail(chain.http, server, client, stream=stream)


async def _all_fail(http: httpx.AsyncClient, server: ScriptedServer, client: str, *, stream: bool) -> None:
    for name, (media_type, body) in NO_ANSWERS.items():
        server.prepared = [(200, media_type, body)] * 2
        response = await ask(http, client, stream=stream)
        assert response.status_code >= 500, (name, response.text)


@each_mode
@pytest.mark.parametrize("name", ["empty", "login page", "login page as JSON", "text", "null", "empty object"])
@pytest.mark.parametrize("kind", ["anthropic", "ollama", "llamacpp"])
async def test_no_answer_of_any_kind_of_backend_is_a_success(
    tmp_path: Path, kind: str, name: str, stream: bool
) -> None:
    media_type, body = NO_ANSWERS[name]
    client = {"llamacpp": "openai"}.get(kind, kind)
    async with (
        start_scripted_server() as first,
        start_scripted_server() as second,
        start_chain(tmp_path, {"first": backend(first.url, kind), "second": backend(second.url)}) as chain,
    ):
        for asking in {client, "openai"}:
            first.prepared = [(200, media_type, body)] * 2
            response = await ask(chain.http, asking, stream=stream)
            assert response.headers["x-hostler-backend"] == "second"
            assert CHATS[asking][1](response, stream) == expected(WORDS)


@each_mode
@pytest.mark.parametrize("kind", ["openai", "llamacpp", "ollama", "anthropic", "lmstudio"])
@pytest.mark.parametrize("path", OTHER_ROUTES)
async def test_no_answer_is_a_success_on_any_route_that_generates(
    tmp_path: Path, path: str, kind: str, stream: bool
) -> None:
    async with (
        start_scripted_server() as server,
        start_chain(tmp_path, {"only": backend(server.url, kind)}, breaker={"failures": 1000}) as chain,
    ):
        for name, (media_type, body) in NO_ANSWERS.items():
            server.prepared = [(200, media_type, body)] * 2
            response = await chain.http.post(path, json={"model": "m", "stream": stream, **OTHER_ROUTES[path]})
            assert response.status_code >= 400 or '"error"' in response.text, (name, response.text)


@pytest.mark.parametrize("kind", ["openai", "llamacpp", "ollama", "anthropic", "lmstudio"])
async def test_no_answer_is_a_success_on_any_route_that_answers_in_json(tmp_path: Path, kind: str) -> None:
    async with (
        start_scripted_server() as server,
        start_chain(tmp_path, {"only": backend(server.url, kind)}, breaker={"failures": 10000}) as chain,
    ):
        for path, body in JSON_ROUTES.items():
            for name, (media_type, data) in {**NO_ANSWERS, **ERRORS_AS_ANSWERS}.items():
                if path in ANY_DATA and name not in NEVER_RIGHT:
                    continue
                server.prepared = [(200, media_type, data)] * 2
                response = await chain.http.post(path, json={"model": "m", **body})
                server.prepared = []
                assert response.status_code >= 400, (path, name, response.text)


@each_chat
async def test_an_end_mark_without_an_end_breaks_a_stream(tmp_path: Path, client: str) -> None:
    body = sse_of(openai_chat(WORDS, {"stream": True}))
    words = body[: body.index(b'"finish_reason": "stop"')]
    cut = words[: words.rindex(b"data: ")]
    async with (
        start_scripted_server() as first,
        start_scripted_server() as second,
        start_chain(tmp_path, {"first": backend(first.url), "second": backend(second.url)}) as chain,
    ):
        half = cut.index(b"data: ", len(cut) // 2)
        first.prepared = [(200, SSE, (cut[:half], cut[half:] + end)) for end in (b"", b"data: [DONE]\n\n")]
        for _ in range(2):
            response = await ask(chain.http, client, stream=True)
            assert "capital" in response.text
            assert "error" in response.text
            assert '"finish_reason":"stop"' not in response.text.replace(" ", "")
            assert "end_turn" not in response.text
            assert '"done":true' not in response.text
            assert second.requests == []
        first.prepared = [(200, SSE, cut + b"data: [DONE]\n\n")] * 2
        response = await ask(chain.http, client, stream=False)
        assert CHATS[client][1](response, False) == expected(WORDS)
        assert second.requests


def _cut_responses() -> dict[str, bytes]:
    """Streams that are no response, although they end as one."""
    answer = ScriptedAnswer()
    whole = sse_of(openai_response(answer, {"stream": True}))
    opening = whole[: whole.index(b"data: ", 6)]
    done = b"data: [DONE]\n\n"
    return {
        "end mark": done,
        "opening": opening + done,
        "chat": sse_of(openai_chat(answer, {"stream": True})),
        "opening, then a chat": opening + sse_of(openai_chat(answer, {"stream": True})),
    }


@each_mode
@pytest.mark.parametrize("name", _cut_responses())
async def test_a_response_without_its_closing_event_is_none(tmp_path: Path, name: str, stream: bool) -> None:
    cut, asked = _cut_responses()[name], {"model": "m", "input": "Hello", "stream": stream}
    async with start_scripted_server() as first, start_scripted_server() as second:
        second.has_responses = True
        async with start_chain(tmp_path, {"first": backend(first.url), "second": backend(second.url)}) as chain:
            for start in (b"", b": hello\n\n"):
                first.prepared = [(200, SSE, (start, cut) if start else cut)] * 2
                response = await chain.http.post("/v1/responses", json=asked)
                assert fact(response, "x-hostler-backend") == "second"
                assert "capital <is>" in response.text
                assert "in_progress" in response.text or not stream
        async with start_chain(tmp_path, {"first": backend(first.url)}) as chain:
            first.prepared = [(200, SSE, cut)] * 2
            response = await chain.http.post("/v1/responses", json=asked)
            assert response.status_code >= 400, response.text


@pytest.mark.parametrize("label", ["text/plain", "application/octet-stream", "text/html; charset=utf-8", JSON, SSE])
@pytest.mark.parametrize(("kind", "stream"), ANSWERS)
async def test_a_right_answer_is_read_under_a_wrong_label(tmp_path: Path, kind: str, stream: bool, label: str) -> None:
    body = ANSWERS[kind, stream][1]
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url, kind)}) as chain:
        for client in CHATS:
            for start in (b"", b"\xef\xbb\xbf", b"\r\n")[: 3 if stream else 2]:
                server.prepared = [(200, label, start + body)]
                response = await ask(chain.http, client, stream=stream)
                assert response.status_code == 200, response.text
                assert CHATS[client][1](response, stream).words == "".join(WORDS.words), (client, start)
                assert len(server.prepared) == 0
                label_sent = response.headers["content-type"]
                assert label_sent.startswith((SSE, LINES) if stream else JSON), (client, label_sent)


def _ollama_line(content: str = "", **more: Any) -> bytes:
    line = {"model": "x", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": content}}
    return json.dumps(line | {"done": True} | more).encode() + b"\n"


EMPTY_ANSWERS = {
    ("openai", "null message"): (JSON, b'{"choices":[{"index":0,"message":null,"finish_reason":"stop"}]}'),
    ("openai", "unfinished"): (JSON, b'{"choices":[{"index":0,"message":{"content":""},"finish_reason":null}]}'),
    ("openai", "aborted"): (JSON, b'{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"abort"}]}'),
    ("openai", "stream aborted"): (SSE, sse_of([{"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}])),
    ("anthropic", "unfinished"): (JSON, b'{"id":"m","type":"message","content":[],"stop_reason":null,"usage":{}}'),
    ("ollama", "load"): (LINES, _ollama_line(done_reason="load")),
    ("ollama", "unload"): (LINES, _ollama_line(done_reason="unload")),
    ("ollama", "nothing"): (LINES, _ollama_line()),
}


@each_mode
@each_chat
@pytest.mark.parametrize(("kind", "name"), EMPTY_ANSWERS)
async def test_an_empty_or_unfinished_answer_is_none(
    tmp_path: Path, kind: str, name: str, client: str, stream: bool
) -> None:
    media_type, body = EMPTY_ANSWERS[kind, name]
    async with (
        start_scripted_server() as first,
        start_scripted_server() as second,
        start_chain(tmp_path, {"first": backend(first.url, kind), "second": backend(second.url)}) as chain,
    ):
        first.prepared = [(200, media_type, body)] * 2
        response = await ask(chain.http, client, stream=stream)
        assert response.headers["x-hostler-backend"] == "second"
        assert CHATS[client][1](response, stream) == expected(WORDS)


@each_mode
@pytest.mark.parametrize("given", [{}, {"load_duration": 5}, {"total_duration": 7, "eval_count": 2}])
async def test_an_answer_of_ollamas_protocol_has_all_durations(
    tmp_path: Path, given: dict[str, int], stream: bool
) -> None:
    lines = [_ollama_line("Hi", done=False), _ollama_line(done_reason="stop", **given)]
    answer = (LINES, b"".join(lines)) if stream else (JSON, _ollama_line("Hi", done_reason="stop", **given))
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url, "ollama")}) as chain:
        server.prepared = [(200, *answer)]
        response = await ask(chain.http, "ollama", stream=stream)
        last = json.loads(response.text.splitlines()[-1])
        names = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
        assert all(last[name] >= 1 for name in names)
        assert given.items() <= last.items()
        assert (last["model"], last["done"]) == ("m", True)


@each_chat
async def test_a_whole_answer_without_a_finish_reason_becomes_a_stream_with_one(tmp_path: Path, client: str) -> None:
    message = {"role": "assistant", "content": "Hi"}
    body = json.dumps({"id": "c", "created": 1, "choices": [{"index": 0, "message": message}], "usage": {
        "prompt_tokens": 3, "completion_tokens": 1}}).encode()  # fmt: skip
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        server.prepared = [(200, JSON, body)]
        read = CHATS[client][1](await ask(chain.http, client, stream=True), True)
        assert (read.words, read.finish) == ("Hi", "stop")


@each_mode
@pytest.mark.parametrize("label", ["application/octet-stream", "application/json; charset=utf-8", SSE, ""])
@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_right_answer_is_read_under_a_wrong_label_wherever_its_start_is_cut(
    tmp_path: Path, is_whole: bool, label: str, stream: bool
) -> None:
    body = ANSWERS["openai", not is_whole][1]
    starts: list[tuple[bytes, bytes]] = [(b"\n", body), (b"\xef", b"\xbb\xbf" + body), (b": hello\n\n", body)]
    if not is_whole:
        starts.append((body[:2], body[2:]))
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        for client in CHATS:
            for parts in starts:
                server.prepared = [(200, label, parts)]
                response = await ask(chain.http, client, stream=stream)
                assert response.status_code == 200, (client, parts[0], response.text)
                assert CHATS[client][1](response, stream).words == "".join(WORDS.words), (client, parts[0])
                assert not server.prepared


@pytest.mark.parametrize("label", ["text/plain", "application/octet-stream"])
async def test_embeddings_are_read_under_a_wrong_label(tmp_path: Path, label: str) -> None:
    body = whole_of(openai_embeddings(WORDS, {"input": ["a"]}))
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        for path in ("/v1/embeddings", "/api/embed"):
            server.prepared = [(200, label, body)]
            response = await chain.http.post(path, json={"model": "m", "input": ["a"]})
            assert response.status_code == 200, response.text
            server.prepared = [(200, JSON, b'{"object":"list","data":[]}')] * 2
            response = await chain.http.post(path, json={"model": "m", "input": ["a"]})
            assert response.status_code >= 500, response.text


@each_mode
async def test_a_stream_instead_of_a_whole_answer_and_the_other_way_round(tmp_path: Path, stream: bool) -> None:
    for kind in ("openai", "anthropic", "ollama"):
        media_type, body = ANSWERS[kind, not stream]
        async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url, kind)}) as chain:
            for client in CHATS:
                server.prepared = [(200, media_type, body)]
                response = await ask(chain.http, client, stream=stream)
                assert CHATS[client][1](response, stream).words == "".join(WORDS.words), (kind, client)


ABSURD = ("1" + "0" * 400, "1e400", '"12"', "12.0", "-3", "null", '"many"', "[]", "1e308")


@each_mode
@pytest.mark.parametrize("kind", ["openai", "llamacpp", "anthropic", "ollama"])
async def test_absurd_numbers_harm_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, stream: bool
) -> None:
    media_type, body = ANSWERS.get((kind, stream)) or ANSWERS["openai", stream]
    timings = b'"timings":{"prompt_n":%b,"prompt_ms":%b,"predicted_n":%b,"predicted_ms":%b},"usage"'
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url, kind)}) as chain:
        for number in ABSURD:
            value = number.encode()
            odd = re.sub(rb'("(?:\w+_tokens|\w+_count|\w+_duration)": )\d+', rb"\g<1>%b" % value, body)
            if kind in ("openai", "llamacpp"):
                odd = odd.replace(b'"usage"', timings % ((value,) * 4))
            for client in CHATS:
                server.prepared = [(200, media_type, odd)]
                response = await ask(chain.http, client, stream=stream)
                assert response.status_code == 200, (client, number, response.text)
                assert "capital" in response.text
                assert "error" not in response.text
                assert not server.prepared
        for path in ("/metrics", "/admin/status", "/admin/history"):
            assert (await chain.http.get(path)).status_code in (200, 404)
    assert "Traceback" not in caplog.text
