"""Recording: every request of a model with its answer, however it ends, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.requests import chat, make_context

from hostler.adapters.canonical import ModelInfoRequest, Origin
from hostler.gateway.asgi import CONTEXT_KEY
from hostler.gateway.middleware.recording import RecordingMiddleware
from hostler.gateway.telemetry.transcripts import Transcript

pytestmark = pytest.mark.anyio

#: What is kept of a request and of an answer, in bytes.
LIMIT = 1024**2

START = {"type": "http.response.start", "status": 200, "headers": []}


async def recorded(context: Any, *pieces: bytes, error: Exception | None = None) -> tuple[list[Transcript], list[Any]]:
    """What is kept of a request that is answered with these pieces, and the messages that were sent."""
    kept: list[Transcript] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if context is not None:
            scope[CONTEXT_KEY] = context
        await send(START)
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if error is not None:
            raise error
        await send({"type": "http.response.body"})

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = RecordingMiddleware(app, kept.append, wall=lambda: 1e9)
    try:
        await middleware({}, None, send)  # type: ignore[arg-type]  # nothing is read
    except LookupError:
        assert error is not None
    return kept, sent


async def test_a_request_is_kept_with_its_answer_and_every_message_is_passed_on() -> None:
    kept, sent = await recorded(make_context(chat(body=b'{"q": 1}')), b"one ", b"two")
    assert kept == [Transcript(id="req-1", at=1e9, request='{"q": 1}', answer="one two", truncated=())]
    assert [message.get("body") for message in sent] == [None, b"one ", b"two", None]


async def test_a_request_that_fails_is_kept_as_far_as_it_came() -> None:
    kept, _ = await recorded(make_context(), b"one", error=LookupError())
    assert [each.answer for each in kept] == ["one"]


async def test_long_texts_are_cut_and_marked() -> None:
    kept, _ = await recorded(make_context(chat(body=b"x" * (LIMIT + 1))), b"y" * LIMIT, b"more")
    assert [(len(each.request), len(each.answer), each.truncated) for each in kept] == [
        (LIMIT, LIMIT, ("request", "answer"))
    ]


@pytest.mark.parametrize("info", [True, False])
async def test_lists_of_models_and_requests_without_a_context_are_not_kept(info: bool) -> None:
    request = ModelInfoRequest(origin=Origin(wire="openai", operation="models", body=b""), kind="models")
    kept, sent = await recorded(make_context(request) if info else None, b"[]")
    assert (kept, len(sent)) == ([], 3)
