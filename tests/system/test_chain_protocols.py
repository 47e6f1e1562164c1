"""Hops of other protocols than the client's, and falling back from requests that a protocol cannot express."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.fake_openrouter import start_openrouter
from fakes.scripted_server import ScriptedAnswer, start_scripted_server
from system.fallback_chain import openai_backend, start_chain
from system.protocol_clients import CHATS, PROMPTS, expected

pytestmark = pytest.mark.anyio

each_mode = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def translated_backend(url: str, kind: str) -> dict[str, Any]:
    return {"kind": kind, "url": url, "models": {"m": "there"}}


@each_mode
@pytest.mark.parametrize("failure", ["refused", 500, "reset"])
@pytest.mark.parametrize("kind", ["ollama", "anthropic"])
@pytest.mark.parametrize("client", CHATS)
async def test_falls_back_to_a_hop_of_another_protocol(
    tmp_path: Path, client: str, kind: str, failure: Any, stream: bool
) -> None:
    make_request, read_answer = CHATS[client]
    async with start_openrouter("first") as first, start_scripted_server() as server:
        first.default = (failure,) if isinstance(failure, int) else failure
        if failure == "refused":
            await first.stop()
        backends = {"first": openai_backend(first), "second": translated_backend(server.url, kind)}
        async with start_chain(tmp_path, backends) as chain:
            path, body = make_request(stream)
            answer = await chain.http.post(path, json={"model": "m", **body})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-hostler-backend"] == "second"
            assert answer.headers["x-hostler-reason"].startswith("first: ")
            result, whole = read_answer(answer, stream), expected(ScriptedAnswer())
            assert (result.words, result.finish) == (whole.words, whole.finish)
            assert len(server.requests) == 1


@each_mode
@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("client", PROMPTS)
async def test_falls_back_from_a_protocol_that_cannot_express_the_request(
    tmp_path: Path, client: str, kind: str, stream: bool
) -> None:
    make_request, read_answer = PROMPTS[client]
    async with start_scripted_server() as first, start_scripted_server() as second:
        backends = {"first": translated_backend(first.url, "anthropic"), "second": translated_backend(second.url, kind)}
        async with start_chain(tmp_path, backends) as chain:
            path, body = make_request(stream)
            for _ in range(4):  # this opens no circuit
                answer = await chain.http.post(path, json={"model": "m", **body})
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-hostler-reason"] == "first: unsupported"
                assert read_answer(answer, stream).words == expected(ScriptedAnswer()).words
            assert first.requests == []
            assert [attempt.outcome for attempt in chain.finished[0].attempts] == ["rejected", "answered"]


@each_mode
@pytest.mark.parametrize("client", PROMPTS)
async def test_a_request_that_no_protocol_can_express_is_invalid(tmp_path: Path, client: str, stream: bool) -> None:
    path, body = PROMPTS[client][0](stream)
    async with start_scripted_server() as first, start_scripted_server() as second:
        backends = {
            "first": translated_backend(first.url, "anthropic"),
            "second": translated_backend(second.url, "anthropic"),
        }
        async with start_chain(tmp_path, backends) as chain:
            answer = await chain.http.post(path, json={"model": "m", **body})
            assert answer.status_code == 400
            assert "does not support this kind of request" in answer.text
            assert chain.finished[0].reason != ""
            assert first.requests == second.requests == []


async def test_the_error_names_the_missing_hop_that_could_have_served(tmp_path: Path) -> None:
    path, body = PROMPTS["openai"][0](False)
    async with start_scripted_server() as first, start_openrouter("second") as second:
        await second.stop()
        backends = {"first": translated_backend(first.url, "anthropic"), "second": openai_backend(second)}
        async with start_chain(tmp_path, backends) as chain:
            answer = await chain.http.post(path, json={"model": "m", **body})
            assert answer.status_code == 503
            message = answer.json()["error"]["message"]
            assert "first does not support this kind of request (unsupported)" in message
            assert "second cannot be reached (unreachable)" in message
