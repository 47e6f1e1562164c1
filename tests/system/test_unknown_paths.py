"""Paths that the gateway does not know go to backends that may know them, and their own 404 is the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.scripted_server import ScriptedServer, start_scripted_server
from system.fallback_chain import RunningChain, start_chain

pytestmark = pytest.mark.anyio

KINDS = ("openai", "llamacpp", "ollama", "lmstudio", "anthropic")
ROUTES = ("/v1/decisions", "/v1/systemone", "/v1/score", "/pooling", "/v1/classify", "/v1/videos", "/v1/moderations")
#: Routes that the gateway knows and these kinds of backends may not.
FOREIGN_KINDS = ("openai", "ollama", "lmstudio", "anthropic")
FOREIGN: dict[str, dict[str, Any]] = {
    "/tokenize": {"content": "Hi"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/v1/audio/speech": {"input": "Hi"},
}
JSON = "application/json"

each_kind = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def backend_of_kind(tmp_path: Path, kind: str, **more: Any) -> AsyncIterator[tuple[ScriptedServer, RunningChain]]:
    async with start_scripted_server() as server:
        backend = {"kind": kind, "url": server.url, "models": {"m": "there"}, **more}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            yield server, chain


@each_kind
@pytest.mark.parametrize("path", ROUTES)
async def test_a_request_reaches_every_kind_of_backend_with_the_models_name_there(
    tmp_path: Path, kind: str, path: str
) -> None:
    answer = b'{ "decision" :  [0.25] }'
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        server.prepared = [(200, JSON, answer)]
        response = await chain.http.post(path, json={"model": "m", "odd": [1]})
    assert (response.status_code, response.content) == (200, answer)
    assert server.requests == [(path, {"model": "there", "odd": [1]})]


@each_kind
async def test_a_backends_own_404_is_the_answer(tmp_path: Path, kind: str) -> None:
    body = b'{"detail" : "Not Found"}'
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        server.prepared = [(404, JSON, body)]
        response = await chain.http.post("/v1/score", json={"model": "m"})
    assert (response.status_code, response.content) == (404, body)


@pytest.mark.parametrize("kind", FOREIGN_KINDS)
@pytest.mark.parametrize("path", FOREIGN)
async def test_a_route_of_other_servers_is_forwarded_and_a_404_comes_back_as_it_is(
    tmp_path: Path, kind: str, path: str
) -> None:
    async with backend_of_kind(tmp_path, kind) as (server, chain):
        for status, media_type, body in (
            (404, "application/json; charset=utf-8", b'{"detail" : "Not Found"}'),
            (404, "text/plain", b"404 page not found"),
            (200, JSON, b'{ "odd" :  [0.25] }'),
        ):
            server.requests.clear()
            server.prepared = [(status, media_type, body)]
            response = await chain.http.post(path, json={"model": "m", **FOREIGN[path]})
            assert (response.status_code, response.content) == (status, body)
            assert response.headers["content-type"] == media_type
            assert server.requests == [(path, {"model": "there", **FOREIGN[path]})]


async def test_a_backend_that_does_not_know_the_path_is_followed_by_one_that_may(tmp_path: Path) -> None:
    async with start_scripted_server() as first, start_scripted_server() as second:
        first.prepared, second.prepared = [(404, JSON, b"{}")], [(200, JSON, b'{"score": 1}')]
        backends = {
            "first": {"kind": "ollama", "url": first.url, "models": {"m": "a"}},
            "second": {"kind": "openai", "url": second.url, "models": {"m": "b"}},
        }
        async with start_chain(tmp_path, backends) as chain:
            response = await chain.http.post("/v1/score", json={"model": "m"})
    assert response.json() == {"score": 1}
    assert second.requests == [("/v1/score", {"model": "b"})]


async def test_a_path_without_a_model_goes_to_the_servers_in_order(tmp_path: Path) -> None:
    async with backend_of_kind(tmp_path, "openai") as (server, chain):
        server.documents = {"/v1/files": {"data": ["mine"]}}
        assert (await chain.http.get("/v1/files")).json() == {"data": ["mine"]}
        assert (await chain.http.get("/v1/files/unknown")).status_code == 404


async def test_the_path_of_the_base_url_takes_the_place_of_v1(tmp_path: Path) -> None:
    async with start_scripted_server() as server:
        backend = {"kind": "openai", "url": f"{server.url}/api/paas/v4?a=1", "models": {"m": "there"}}
        async with start_chain(tmp_path, {"box": backend}) as chain:
            server.prepared = [(200, JSON, b"{}")]
            await chain.http.post("/v1/score?b=2", json={"model": "m"})
    assert server.heads[-1][1] == "/api/paas/v4/score?b=2&a=1"
