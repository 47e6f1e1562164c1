"""Hops of other protocols than the client's, and falling back from requests that a protocol cannot express."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.openrouter import open_router
from fakes.storyteller import Story, open_storyteller
from system.chain import open_chain, plain
from system.test_clients_crossing import CHATS, PROMPTS, expected

pytestmark = pytest.mark.anyio

each_mode = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def told(url: str, kind: str) -> dict[str, Any]:
    return {"kind": kind, "url": url, "models": {"m": "there"}}


@each_mode
@pytest.mark.parametrize("trouble", ["refused", 500, "reset"])
@pytest.mark.parametrize("kind", ["ollama", "anthropic"])
@pytest.mark.parametrize("client", CHATS)
async def test_falls_back_to_a_hop_of_another_protocol(
    tmp_path: Path, client: str, kind: str, trouble: Any, stream: bool
) -> None:
    asks, reads = CHATS[client]
    async with open_router("first") as first, open_storyteller() as teller:
        first.then = (trouble,) if isinstance(trouble, int) else trouble
        if trouble == "refused":
            await first.stop()
        backends = {"first": plain(first), "second": told(teller.url, kind)}
        async with open_chain(tmp_path, backends) as chain:
            path, body = asks(stream)
            answer = await chain.http.post(path, json={"model": "m", **body})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-hostler-backend"] == "second"
            assert answer.headers["x-hostler-reason"].startswith("first: ")
            said, whole = reads(answer, stream), expected(Story())
            assert (said.words, said.finish) == (whole.words, whole.finish)
            assert len(teller.asked) == 1


@each_mode
@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("client", PROMPTS)
async def test_falls_back_from_a_protocol_that_cannot_express_the_request(
    tmp_path: Path, client: str, kind: str, stream: bool
) -> None:
    asks, reads = PROMPTS[client]
    async with open_storyteller() as first, open_storyteller() as second:
        backends = {"first": told(first.url, "anthropic"), "second": told(second.url, kind)}
        async with open_chain(tmp_path, backends) as chain:
            path, body = asks(stream)
            for _ in range(4):  # nothing is held against a backend for it
                answer = await chain.http.post(path, json={"model": "m", **body})
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-hostler-reason"] == "first: unsupported"
                assert reads(answer, stream).words == expected(Story()).words
            assert first.asked == []
            assert [attempt.outcome for attempt in chain.finished[0].attempts] == ["rejected", "answered"]


@each_mode
@pytest.mark.parametrize("client", PROMPTS)
async def test_a_request_that_no_protocol_can_express_is_invalid(tmp_path: Path, client: str, stream: bool) -> None:
    path, body = PROMPTS[client][0](stream)
    async with open_storyteller() as first, open_storyteller() as second:
        backends = {"first": told(first.url, "anthropic"), "second": told(second.url, "anthropic")}
        async with open_chain(tmp_path, backends) as chain:
            answer = await chain.http.post(path, json={"model": "m", **body})
            assert answer.status_code == 400
            assert "does not support this kind of request" in answer.text
            assert chain.finished[0].reason != ""
            assert first.asked == second.asked == []


async def test_the_error_names_the_missing_hop_that_could_have_served(tmp_path: Path) -> None:
    path, body = PROMPTS["openai"][0](False)
    async with open_storyteller() as first, open_router("second") as second:
        await second.stop()
        backends = {"first": told(first.url, "anthropic"), "second": plain(second)}
        async with open_chain(tmp_path, backends) as chain:
            answer = await chain.http.post(path, json={"model": "m", **body})
            assert answer.status_code == 503
            message = answer.json()["error"]["message"]
            assert "first does not support this kind of request (unsupported)" in message
            assert "second cannot be reached (unreachable)" in message
