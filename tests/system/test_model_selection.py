"""Where a model is named: in the body, a form, a header or the query, for each protocol; the body counts most."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from system.running_gateway import RunningGateway, StartGateway

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO}),
    ("/v1/completions", {"prompt": "Once"}),
    ("/v1/embeddings", {"input": "one"}),
    ("/v1/responses", {"input": "Hello"}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
    ("/api/chat", {"messages": HELLO, "stream": False}),
    ("/api/generate", {"prompt": "Once", "stream": False}),
    ("/api/embed", {"input": "one"}),
    ("/completion", {"prompt": "Once"}),
    ("/tokenize", {"content": "one two"}),
    ("/v2/tokenize", {"content": "one two"}),
    ("/api/v0/chat/completions", {"messages": HELLO}),
]
PROFILES: dict[str, Any] = {"a": {}, "org/b": {"aliases": ["bee"]}}


async def answerer(gateway: RunningGateway, path: str, **more: Any) -> tuple[int, str | None]:
    """The status, and which model answered."""
    answer: httpx.Response = await gateway.http.post(path, **more)
    return answer.status_code, answer.headers.get("x-hostler-model")


@pytest.mark.parametrize(("path", "body"), ASKED, ids=[path for path, _ in ASKED])
async def test_a_header_or_the_query_can_name_the_model(
    start_gateway: StartGateway, path: str, body: dict[str, Any]
) -> None:
    profiles = {name: {**profile, "embeddings": "embed" in path} for name, profile in PROFILES.items()}
    async with start_gateway({"chat": {}, **profiles}, supervisor={"exclusive": False}) as gateway:
        await gateway.chat("chat")
        for headers in ({"X-Hostler-Model": "bee"}, {"X-Model": "org/b"}):
            assert await answerer(gateway, path, json=body, headers=headers) == (200, "org/b")
        assert await answerer(gateway, f"{path}?model=org%2Fb", json=body) == (200, "org/b")
        # Before the query comes the header, before the header the body.
        headers = {"X-Hostler-Model": "org/b", "X-Model": "missing"}
        assert await answerer(gateway, f"{path}?model=missing", json=body, headers=headers) == (200, "org/b")
        assert await answerer(gateway, path, json={**body, "model": "org/b"}, headers={"X-Model": "a"}) == (
            200,
            "org/b",
        )
        assert (await answerer(gateway, path, json=body, headers={"X-Model": "missing"}))[0] == 404
    bodies = [note["body"] for note in gateway.requests("org/b")]
    assert not any(name in each for each in bodies for name in ("bee", "missing"))


async def test_a_model_in_a_form_precedes_headers(start_gateway: StartGateway) -> None:
    async with start_gateway(PROFILES) as gateway:
        await gateway.chat("a")
        files = {"file": ("a.wav", b"RIFF")}
        path = "/v1/audio/transcriptions"
        for more in ({"data": {"model": "org/b"}, "headers": {"X-Model": "a"}}, {"headers": {"X-Model": "bee"}}):
            await gateway.http.post(path, files=files, **more)
            assert gateway.requests()[-1]["model"] == "org/b"
            assert 'name="model"' in gateway.requests()[-1]["body"]


async def test_a_header_can_name_the_model_of_an_info_request(start_gateway: StartGateway) -> None:
    async with start_gateway(PROFILES) as gateway:
        props = (await gateway.http.get("/props", headers={"X-Hostler-Model": "org/b"})).json()
        shown = await gateway.http.post("/api/show", json={}, headers={"X-Hostler-Model": "org/b"})
        assert props["model_alias"] == "org/b"
        assert shown.status_code == 200
        assert gateway.starts() == []
