"""A request's own fault stays that request's: errors in the forms of real servers, and what clients of each protocol get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.scripted_server import ScriptedAnswer, start_scripted_server
from fakes.server_errors import OVERFLOWS, REQUEST_FAULTS, ServerError
from system.fallback_chain import start_chain
from system.running_gateway import StartGateway, data_events

from hostler.adapters.error_body import read_error

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": HELLO}),
    "responses": ("/v1/responses", {"input": "Hello"}),
    "anthropic": ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
    "ollama": ("/api/chat", {"messages": HELLO}),
    "lmstudio": ("/api/v1/chat", {"input": "Hello"}),
    "llamacpp": ("/completion", {"prompt": "Hello"}),
}
each_client = pytest.mark.parametrize("client", CLIENTS)
each_mode = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def backend(url: str, kind: str = "openai", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "url": url, "models": {"m": "there"}, **more}


def as_answer(error: ServerError) -> tuple[int, str, bytes]:
    return error.status, error.media_type, error.data


def as_event(error: ServerError) -> tuple[int, str, bytes]:
    """The error as servers send it after the head of a stream."""
    return 200, "text/event-stream", b"data: " + json.dumps(json.loads(error.data)).encode() + b"\n\n"


async def ask(http: httpx.AsyncClient, client: str, *, stream: bool) -> httpx.Response:
    path, body = CLIENTS[client]
    return await http.post(path, json={"model": "m", "stream": stream, **body})


def message_of(response: httpx.Response, client: str) -> str:
    """The error's message, read as this protocol's clients read it."""
    body = response.json()
    if client == "ollama":
        assert isinstance(body["error"], str)
    if client == "anthropic":
        assert body["type"] == "error"
    details = read_error(response.content)
    assert details is not None, response.text
    return details.message


@each_mode
@each_client
async def test_an_engines_error_reaches_its_client_alone(tmp_path: Path, client: str, stream: bool) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        for error in REQUEST_FAULTS:
            if client == "responses" and error.status == 501:
                continue  # a server without this route gets a chat instead
            for _ in range(3):
                server.requests.clear()
                server.prepared = [as_answer(error)]
                response = await ask(chain.http, client, stream=stream)
                assert 400 <= response.status_code < 500 or response.status_code == error.status == 501, error.name
                assert error.words in message_of(response, client), error.name
                assert "Traceback" not in response.text
                assert len(server.requests) == 1, error.name
        assert {attempt.outcome for request in chain.finished for attempt in request.attempts} == {"rejected"}
        answer = await ask(chain.http, client, stream=stream)
        assert answer.status_code == 200, answer.text


@each_mode
@pytest.mark.parametrize("kind", ["openai", "llamacpp"])
async def test_an_error_in_a_stream_before_its_first_token_is_the_same(tmp_path: Path, kind: str, stream: bool) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url, kind)}) as chain:
        for error in REQUEST_FAULTS:
            if isinstance(json.loads(error.data), dict) and "detail" in json.loads(error.data):
                continue  # from frameworks, before a stream begins
            server.requests.clear()
            server.prepared = [as_event(error)]
            response = await ask(chain.http, "openai", stream=stream)
            assert 400 <= response.status_code < 500 or response.status_code == 501, error.name
            assert error.words in message_of(response, "openai"), error.name
            assert len(server.requests) == 1, error.name


async def test_a_silent_health_check_makes_an_error_the_backends_failure(tmp_path: Path) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        server.health_status = 500
        server.prepared = [as_answer(REQUEST_FAULTS[0])] * 2
        response = await ask(chain.http, "openai", stream=False)
        assert response.status_code == 503
        assert [attempt.outcome for attempt in chain.finished[0].attempts] == ["server_error"] * 2


@pytest.mark.parametrize(
    ("health", "lives"),
    [
        ({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, True),
        ({"status": "loading model"}, True),
        ({"error": {"code": 503, "message": "no slot available", "type": "unavailable_error"}}, False),
        ({"status": "error"}, False),
        ({}, False),
    ],
)
async def test_a_health_check_with_503_shows_life_only_if_a_model_loads(
    tmp_path: Path, health: dict[str, Any], lives: bool
) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        server.health_status, server.health = 503, json.dumps(health).encode()
        server.prepared = [as_answer(REQUEST_FAULTS[0])] * 2
        response = await ask(chain.http, "openai", stream=False)
        assert response.status_code == (400 if lives else 503)
        assert {attempt.outcome for attempt in chain.finished[0].attempts} == {"rejected" if lives else "server_error"}


@each_client
async def test_an_engines_plain_words_reach_its_client(tmp_path: Path, client: str) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        for status, words in (
            (500, "Failed to process the image"),
            (422, OVERFLOWS[0].words),
            (500, OVERFLOWS[0].words),
        ):
            server.prepared = [(status, "text/plain", words.encode())]
            response = await ask(chain.http, client, stream=False)
            assert (response.status_code, response.headers["x-should-retry"]) == (400, "false"), response.text
            assert words in response.text or "prompt is too long" in response.text
        for status, words in ((500, "Internal Server Error"), (503, "upstream connect error or disconnect")):
            server.prepared = [(status, "text/plain", words.encode())] * 2
            response = await ask(chain.http, client, stream=False)
            assert response.headers.get("x-should-retry") is None, response.text


async def test_a_clouds_500_stays_a_failure(tmp_path: Path) -> None:
    async with start_scripted_server() as cloud, start_scripted_server() as lan:
        backends = {"cloud": backend(cloud.url, local=False), "lan": backend(lan.url)}
        async with start_chain(tmp_path, backends) as chain:
            cloud.prepared = [as_answer(REQUEST_FAULTS[0])] * 2
            response = await ask(chain.http, "openai", stream=False)
            assert response.headers["x-hostler-backend"] == "lan"
            assert response.headers["x-hostler-reason"] == "cloud: server_error"
            assert len(cloud.requests) == 2


async def test_another_hop_may_answer_what_an_engine_failed_at(tmp_path: Path) -> None:
    async with (
        start_scripted_server() as first,
        start_scripted_server() as second,
        start_chain(tmp_path, {"first": backend(first.url), "second": backend(second.url)}) as chain,
    ):
        first.prepared = [as_answer(REQUEST_FAULTS[0])]
        response = await ask(chain.http, "openai", stream=False)
        assert response.headers["x-hostler-backend"] == "second"
        first.prepared, second.prepared = [as_answer(REQUEST_FAULTS[0])], [as_answer(REQUEST_FAULTS[1])]
        response = await ask(chain.http, "openai", stream=False)
        assert (response.status_code, REQUEST_FAULTS[0].words in response.text) == (400, True)
        assert (len(first.requests), len(second.requests)) == (2, 2)
        first.prepared, second.prepared = [as_answer(REQUEST_FAULTS[0])], [(502, "text/html", b"<html>")] * 2
        response = await ask(chain.http, "openai", stream=False)
        assert response.status_code == 503, "the second hop may serve it later"


@each_mode
@each_client
async def test_an_engines_error_keeps_its_words_though_other_hops_were_skipped_or_are_down(
    tmp_path: Path, client: str, stream: bool
) -> None:
    async with start_scripted_server() as lan, start_scripted_server() as cloud:
        backends = {
            "lan": backend(lan.url),
            "cloud": backend(cloud.url, local=False),
            "off": backend("http://127.0.0.1:9"),
        }
        async with start_chain(tmp_path, backends) as chain:
            for headers in (
                {"x-hostler-local-only": "true"},
                {"x-hostler-only": "lan"},
                {},  # the cloud rejects the key
                {},  # the cloud is paused for that
            ):
                lan.prepared = [as_answer(REQUEST_FAULTS[0])]
                cloud.prepared = [(401, "application/json", b'{"error": {"message": "wrong key"}}')]
                path, body = CLIENTS[client]
                content = {"model": "m", "stream": stream, **body}
                response = await chain.http.post(path, json=content, headers=headers)
                assert response.status_code == 400, response.text
                assert response.headers["x-should-retry"] == "false"
                assert REQUEST_FAULTS[0].words in message_of(response, client)


@each_mode
@pytest.mark.parametrize("in_stream", [False, True], ids=["status", "event"])
async def test_a_request_that_is_too_long_goes_to_the_hop_that_has_room(
    tmp_path: Path, in_stream: bool, stream: bool
) -> None:
    async with start_scripted_server() as small, start_scripted_server() as large:
        backends = {
            "small": backend(small.url, context=4096),
            "same": backend(small.url, context=4096),
            "large": backend(large.url, context=131072),
        }
        async with start_chain(tmp_path, backends) as chain:
            for error in OVERFLOWS:
                small.requests.clear()
                small.prepared = [as_event(error) if in_stream else as_answer(error)]
                response = await ask(chain.http, "openai", stream=stream)
                assert response.status_code == 200, (error.name, response.text)
                assert response.headers["x-hostler-backend"] == "large", error.name
                assert len(small.requests) == 1, "the hop with the same context is not asked"


@each_client
@pytest.mark.parametrize("local", [True, False])
async def test_a_request_that_is_too_long_everywhere_is_invalid(tmp_path: Path, client: str, local: bool) -> None:
    async with (
        start_scripted_server() as server,
        start_chain(tmp_path, {"there": backend(server.url, context=4096, local=local)}) as chain,
    ):
        for error in OVERFLOWS:
            for prepared in (as_answer(error), as_event(error)):
                server.requests.clear()
                server.prepared = [prepared]
                response = await ask(chain.http, client, stream=False)
                assert response.status_code == 400, (error.name, response.text)
                assert len(server.requests) == 1, error.name
                message = message_of(response, client)
                if client == "anthropic":
                    assert "prompt is too long" in message, error.name
                    assert error.sizes is None or f"{error.sizes[0]} tokens > {error.sizes[1]} maximum" in message
                elif local:
                    assert error.words in message, error.name
                else:
                    assert "maximum context length" in message, error.name
        server.prepared = []
        assert (await ask(chain.http, client, stream=False)).status_code == 200


async def test_an_error_after_the_first_token_breaks_the_stream(tmp_path: Path) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        server.answer = ScriptedAnswer(breaks=OVERFLOWS[0].words)
        response = await ask(chain.http, "openai", stream=True)
        *words, last = data_events(response.text)
        assert len(words) == 3
        assert "error" in last
        assert chain.finished[0].outcome == "broken"


@each_mode
@pytest.mark.parametrize("status", [500, 502])
async def test_a_supervised_engine_that_fails_at_requests_serves_on(
    start_gateway: StartGateway, status: int, stream: bool
) -> None:
    script = {"status": status, "error": "Conversation roles must alternate"}
    async with start_gateway({"m": {"script": script}, "other": {}}) as gateway:
        for client in (*CLIENTS, *CLIENTS):
            response = await ask(gateway.http, client, stream=stream)
            assert response.status_code == 400, response.text
            assert "roles must alternate" in message_of(response, client)
        assert len(gateway.requests("m")) == 2 * len(CLIENTS)
        assert gateway.starts() == ["m"]
        assert (await gateway.chat("other")).status_code == 200


@each_mode
async def test_a_backend_without_the_responses_api_is_asked_for_it_once(tmp_path: Path, stream: bool) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        for paths in (["/v1/responses", "/v1/chat/completions"], ["/v1/chat/completions"], ["/v1/chat/completions"]):
            server.requests.clear()
            assert (await ask(chain.http, "responses", stream=stream)).status_code == 200
            assert [path for path, _ in server.requests] == paths


@pytest.mark.parametrize("client", ["openai", "responses", "anthropic", "ollama"])
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
async def test_a_wrong_request_is_asked_once(tmp_path: Path, client: str, status: int) -> None:
    async with start_scripted_server() as server, start_chain(tmp_path, {"pc": backend(server.url)}) as chain:
        server.answer = ScriptedAnswer(error=(status, "the model `there` does not exist, and more is wrong"))
        assert (await ask(chain.http, client, stream=True)).status_code >= 400
        assert len(server.requests) == 1
