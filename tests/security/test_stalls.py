"""No single request and no answer of a backend keeps the gateway from answering others."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio.lowlevel
import httpx
import pytest
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from security.hostile_backend import CHATS, STREAM_HEAD, BackendRequest, gateway_process, hostile_backend
from security.stall_meter import stall_meter

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

#: Each of these took 2 to 16 seconds before it was bounded. Time spent waiting for a CPU does not count.
ALLOWED_S = 1.5

MIB = 1024**2
NUMBERS = b"1," * (30 * MIB) + b"1"
WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "word"}}]}\n\n'

Answer = Callable[[BackendRequest], Awaitable[None]]


def flood(*pieces: bytes, times: int) -> Answer:
    async def answer(request: BackendRequest) -> None:
        await request.send(STREAM_HEAD)
        for piece in (*pieces[:-1], *[pieces[-1]] * times):
            await request.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await request.send(b"0\r\n\r\n")

    return answer


def packed(body: bytes, media_type: str = "application/json") -> Answer:
    compressed = gzip.compress(body)

    async def answer(request: BackendRequest) -> None:
        await request.whole(compressed, media_type=media_type, extra="Content-Encoding: gzip\r\n")

    return answer


async def interim(request: BackendRequest) -> None:
    for _ in range(2000):
        await request.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 500)


def lists(each: bytes, *, times: int) -> Answer:
    async def answer(request: BackendRequest) -> None:
        await request.whole(CHOICE[:-1] % b"hello" + b', "x": [' + b",".join([each] * times) + b"]}")

    return answer


async def millions_of_numbers(request: BackendRequest) -> None:
    await request.whole(b'{"data": [{"index": 0, "embedding": [' + NUMBERS + b"]}]}")


CALL = (
    b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": %d, "id": "call_%d", "type": "function",'
    b' "function": {"name": "f", "arguments": "{}"}}]}}]}\n\n'
)
CHOICE = b'{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "%b"}}]}'
ANSWERS: dict[str, Answer] = {
    "comments": flood(b": x\n\n" * 13_000, times=60),
    "comments after a word": flood(WORD, b": x\n\n" * 13_000, times=60),
    "one comment of many lines": flood(b":\n" * 4_000_000 + b"\n", times=1),
    "events without data": flood(b"event: x\n\n" * 6_000, times=60),
    "words": flood(WORD * 1_000, times=60),
    "interim responses": interim,
    "an error of one word": packed(b'{"error": {"message": "' + b"exceed" * 20_000 + b'"}}'),
    "a packed answer": packed(CHOICE % (b"a" * 300 * MIB)),
    "nested lists": lists(b"[" * 900 + b"]" * 900, times=15_000),
    "tool calls": flood(b"".join(CALL % (number, number) for number in range(20_000)), times=1),
    "packed comments": packed((b": " + b"a" * 1000 + b"\n\n") * 100_000, "text/event-stream"),
}


async def ask(http: httpx.AsyncClient, path: str, body: bytes) -> int:
    """The status; 0 if the connection broke."""
    try:
        answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    except httpx.TransportError:
        return 0
    return answer.status_code


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("name", ANSWERS)
async def test_no_answer_of_a_backend_stalls_the_gateway(tmp_path: Path, name: str, local: bool) -> None:
    async with hostile_backend() as backend:
        backend.answer, backend.keep_requests = ANSWERS[name], False
        one = {"kind": "openai", "url": backend.url, "local": local, "models": {"m": "m"}}
        async with gateway_process(tmp_path, {"one": one}, breaker={"failures": 10**6}) as gateway:
            with stall_meter(gateway) as meter:
                for protocol in ("openai", "anthropic", "ollama"):
                    path, body = CHATS[protocol]
                    for stream in (True, False):
                        await ask(gateway.http, path, json.dumps(body("m", "Hello", stream)).encode())
            assert meter.longest_s < ALLOWED_S


def extended(protocol: str, field: bytes) -> tuple[str, bytes]:
    path, body = CHATS[protocol]
    return path, json.dumps(body("m", "Hello", False)).encode()[:-1] + b"," + field + b"}"


BODIES: dict[str, tuple[str, bytes]] = {
    **{f"numbers, {protocol}": extended(protocol, b'"x": [' + NUMBERS + b"]") for protocol in ("openai", "ollama")},
    "options, ollama": extended("ollama", b'"options": {"stop": [' + NUMBERS + b"]}"),
    **{
        f"keys, {protocol}": extended(protocol, b",".join(b'"k%d":1' % number for number in range(99_000)))
        for protocol in CHATS
    },
    **{
        f"nested keys, {protocol}": extended(
            protocol, b'"x":{' + b",".join(b'"k%d":{}' % number for number in range(99_000)) + b"}"
        )
        for protocol in ("anthropic", "openai")
    },
    "embeddings": ("/v1/embeddings", b'{"model": "m", "input": [' + NUMBERS + b"]}"),
    "embed, ollama": ("/api/embed", b'{"model": "m", "input": [' + NUMBERS + b"]}"),
    "context, ollama": ("/api/generate", b'{"model": "m", "prompt": "x", "context": [' + NUMBERS + b"]}"),
    "escapes": extended("openai", b'"x": "' + b'\\"' * (28 * MIB) + b'"'),
    "brackets in a text": extended("anthropic", b'"x": "' + b"[{" * (28 * MIB) + b'"'),
}


async def test_no_request_stalls_the_gateway(tmp_path: Path) -> None:
    async with hostile_backend() as backend:
        backend.keep_requests = False
        one = {"kind": "openai", "url": backend.url, "models": {"m": "m"}}
        async with gateway_process(tmp_path, {"one": one}) as gateway:
            longest = {}
            for name, (path, body) in BODIES.items():
                with stall_meter(gateway) as meter:
                    assert await ask(gateway.http, path, body) in (200, 400, 413), name
                    await anyio.lowlevel.checkpoint()
                longest[name] = meter.longest_s
            assert max(longest.values()) < ALLOWED_S, longest


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/v1/embeddings"])
async def test_millions_of_numbers_in_an_answer_do_not_stall_the_gateway(tmp_path: Path, path: str) -> None:
    async with hostile_backend() as backend:
        backend.answer, backend.keep_requests = millions_of_numbers, False
        one = {"kind": "openai", "url": backend.url, "models": {"m": "m"}}
        async with gateway_process(tmp_path, {"one": one}, breaker={"failures": 10**6}) as gateway:
            with stall_meter(gateway) as meter:
                for _ in range(2):
                    await ask(gateway.http, path, b'{"model": "m", "input": "x", "prompt": "x"}')
            assert meter.longest_s < ALLOWED_S


@pytest.mark.parametrize("text", ["hello world " * (5 * MIB // 2), "a" * (30 * MIB)], ids=["words", "a run"])
async def test_a_text_for_a_model_that_is_not_loaded_does_not_stall_the_gateway(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.gguf").write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
    sections = {
        "supervisor": {"engine": f"{sys.executable} -I", "listen": "127.0.0.1:0"},
        "profiles": {"m": {"model": str(tmp_path / "m.gguf"), "context": 4096}},
    }
    async with gateway_process(tmp_path, {}, command="up", **sections) as gateway:
        path, body = CHATS["openai"]
        with stall_meter(gateway) as meter:
            await ask(gateway.http, path, json.dumps(body("m", text, False)).encode())
        assert meter.longest_s < ALLOWED_S
