"""What a backend sends in its errors, and the gateway's own keys, reach no log, page, event or client."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from security.hostile_backend import (
    CHATS,
    SECRET,
    STREAM_HEAD,
    BackendRequest,
    GatewayProcess,
    chat,
    gateway_process,
    hostile_backend,
)

pytestmark = pytest.mark.anyio

WORDS = "words-of-the-backend /srv/models/x.gguf https://internal.example/"


def echo(request: BackendRequest) -> str:
    """A backend's words about the key that it received."""
    return f"{WORDS} Authorization: {request.headers.get('authorization')}"


def rejection(status: int, form: Callable[[str], Any]) -> Callable[[BackendRequest], Awaitable[None]]:
    async def answer(request: BackendRequest) -> None:
        body = json.dumps(form(echo(request))).encode()
        extra = f"X-Echo: {SECRET}\r\nWWW-Authenticate: Bearer realm={SECRET}\r\n"
        await request.whole(body, status=status, media_type=f"application/json; k={SECRET}", extra=extra)

    return answer


async def error_in_200(request: BackendRequest) -> None:
    await request.whole(json.dumps({"error": {"message": echo(request), "code": 502}}).encode())


async def error_in_stream(request: BackendRequest) -> None:
    await request.chunks(b"data: " + json.dumps({"error": {"message": echo(request)}}).encode() + b"\n\n")


async def error_after_words(request: BackendRequest) -> None:
    first = b'data: {"choices": [{"index": 0, "delta": {"content": "word"}}]}\n\n'
    await request.chunks(first, b"data: " + json.dumps({"error": {"message": echo(request)}}).encode() + b"\n\n")


async def words(request: BackendRequest) -> None:
    """The key as the answer itself, cut in the middle and with the slash escaped."""
    text = SECRET + " and " + SECRET
    if request.json.get("stream"):
        event = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).replace("/", "\\/")
        data = f"data: {event}\n\n".encode()
        last = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        cut = data.index(b"v1-")
        await request.send(STREAM_HEAD)
        for piece in (data[:cut], data[cut : cut + 9], data[cut + 9 :], last):
            await request.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await anyio.sleep(0.01)
        await request.send(b"0\r\n\r\n")
    else:
        choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
        await request.whole(json.dumps({"choices": [choice], "extra": text}).encode())


async def encoded_words(request: BackendRequest) -> None:
    """The key in other forms, as the answer itself and beside it."""
    text = " ".join(ENCODED)
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    extra = "".join(f"X-Echo-{number}: {form}\r\n" for number, form in enumerate(ENCODED))
    await request.whole(json.dumps({"choices": [choice], "extra": text}).encode(), extra=extra)


#: Other forms in which a server may show the key that it received.
ENCODED = (
    base64.b64encode(SECRET.encode()).decode(),
    base64.b64encode(f"Bearer {SECRET}".encode()).decode(),
    quote(SECRET, safe=""),
    SECRET.encode().hex(),
)
#: Parts of them that show the key. In base64 what stands beside it changes the characters at either end.
TELLING = tuple(form[12:-6] for form in ENCODED)
FORMS: dict[str, Callable[[str], Any]] = {
    "object": lambda text: {"error": {"message": text, "type": text, "code": text}},
    "text": lambda text: {"error": text},
    "flat": lambda text: {"object": "error", "message": text},
    "list": lambda text: [{"error": {"message": text}}],
    "detail": lambda text: {"detail": text},
}
ANSWERS: dict[str, Callable[[BackendRequest], Awaitable[None]]] = {
    **{f"{status} {form}": rejection(status, FORMS[form]) for status in (400, 401, 429, 500) for form in FORMS},
    "error in 200": error_in_200,
    "error in a stream": error_in_stream,
    "error after words": error_after_words,
    "words": words,
    "encoded": encoded_words,
    "encoded error": rejection(400, lambda _: {"error": {"message": " ".join(ENCODED)}}),
}


async def told(gateway: GatewayProcess) -> dict[str, str]:
    """All that operators and monitoring can read."""
    pages = {}
    for path in (
        "/admin/status",
        "/admin/history?kind=requests",
        "/metrics",
        "/admin/logs?follow=0",
        "/ui/",
        "/readyz",
    ):
        pages[path] = (await gateway.http.get(path)).text
    return {**pages, "log": gateway.log}


@pytest.mark.parametrize("local", [False, True])
async def test_neither_keys_nor_words_of_a_backend_leak(tmp_path: Path, local: bool) -> None:
    async with hostile_backend() as backend:
        cloud = {"kind": "openai", "url": backend.url, "local": local, "models": {"m": "m"}, "api_key": SECRET}
        async with gateway_process(tmp_path, {"cloud": cloud}, breaker={"failures": 10**6}) as gateway:
            for name, answer in ANSWERS.items():
                backend.answer = answer
                for protocol in CHATS:
                    for stream in (False, True):
                        # A rejected key opens the circuit: the header closes it again.
                        path, body = CHATS[protocol]
                        headers = {"X-Hostler-Only": "cloud"}
                        reply = await gateway.http.post(path, json=body("m", "Hello", stream), headers=headers)
                        seen = reply.text + str(reply.headers)
                        assert SECRET not in seen.replace("\\/", "/"), (name, protocol, stream)
                        assert not any(form in seen.replace("\\/", "/") for form in TELLING), (name, protocol, stream)
                        if not local and name != "words":
                            assert WORDS not in seen.replace("\\/", "/"), (name, protocol, stream)
            assert backend.requests
            assert all(request.headers["authorization"] == f"Bearer {SECRET}" for request in backend.requests)
            for place, text in (await told(gateway)).items():
                assert SECRET not in text, place
                assert base64.b64encode(SECRET.encode()).decode() not in text, place
                assert WORDS not in text, place


async def test_a_model_list_or_check_that_echoes_the_key_is_not_repeated(tmp_path: Path) -> None:
    async with hostile_backend() as backend:
        backend.answer = words
        cloud = {"kind": "openai", "url": backend.url, "models": {"m": "m"}, "api_key": SECRET}
        async with gateway_process(tmp_path, {"cloud": cloud}) as gateway:
            for path in ("/v1/models", "/api/tags", "/v1/models/m", "/props", "/slots"):
                assert SECRET not in (await gateway.http.get(path)).text
            assert SECRET not in (await chat(gateway.http, "openai")).text
