"""A supervisor on another machine: its HTTP client, against scripted responses and a real manager."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from anyio.abc import SocketStream
from pytest_httpx import HTTPXMock, IteratorStream

from hostler.profiles.schema import Profile
from hostler.supervisor.client import ClientLimits, SupervisorClient
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    HostStatus,
    SupervisorError,
    SupervisorUnreachable,
    UnknownProfile,
)
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.schemas import PullResponse, SupervisorErrorBody, SupervisorErrorResponse

pytestmark = pytest.mark.anyio
TOKEN = "a-long-token"
URL = "http://gpu.lan:8080"
QUICK = ClientLimits(connect_s=1.0, response_s=2.0, silence_s=0.2, attempts=3, retry_s=0.01, max_retry_s=0.02)
AT = EngineAddress(model="alpha", host="10.0.0.2", port=8123, key="k", generation=1, context=4096, parallel=1)
ServeAPI = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
async def client(fake_supervisor: Any, serve_api: ServeAPI) -> AsyncIterator[SupervisorClient]:
    async with serve_api(fake_supervisor, token=TOKEN) as url, SupervisorClient(url, TOKEN) as client:
        yield client


@pytest.fixture
async def quick() -> AsyncIterator[SupervisorClient]:
    async with SupervisorClient(URL, TOKEN, limits=QUICK) as client:
        yield client


def _sse(name: str, value: msgspec.Struct) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


def _stream(*parts: bytes) -> dict[str, Any]:
    return {"headers": {"Content-Type": "text/event-stream"}, "stream": IteratorStream(list(parts))}


def _refusal(kind: str, failure: Failure | None = None) -> bytes:
    return msgspec.json.encode(
        SupervisorErrorResponse(error=SupervisorErrorBody(type=kind, message="because", failure=failure))
    )


async def test_knows_what_the_host_knows(client: SupervisorClient, fake_supervisor: Any) -> None:
    assert await client.status() == fake_supervisor.host()
    assert client.reachable is True


async def test_unloads_and_forecasts(client: SupervisorClient, fake_supervisor: Any) -> None:
    fake_supervisor.ready = {"alpha": AT}
    await client.unload("alpha")
    assert fake_supervisor.ready == {}
    forecast = await client.forecast("first")
    assert forecast is not None
    assert (forecast.model, forecast.state, forecast.load_s) == ("alpha", "cold", 1.5)


async def test_an_unknown_model_is_an_error_of_its_own(client: SupervisorClient) -> None:
    for call in (client.unload, client.forecast):
        with pytest.raises(UnknownProfile, match="2 models are: alpha, beta"):
            await call("gamma")


@asynccontextmanager
async def _answering(handle: Callable[[SocketStream, int], Any]) -> AsyncIterator[str]:
    """A server on a free port. `handle` gets each connection and its number."""
    numbers = iter(range(1000))

    async def serve(stream: SocketStream) -> None:
        # A client that waited too long for a busy machine is gone.
        with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            async with stream:
                await stream.receive()
                await handle(stream, next(numbers))

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


async def test_a_silent_stream_counts_as_lost_and_pings_keep_it() -> None:
    async def handle(stream: SocketStream, number: int) -> None:
        await stream.send(HEAD)
        if number == 0:
            await anyio.sleep_forever()
        for _ in range(8):  # twice as long as the silence that is allowed
            await anyio.sleep(0.05)
            await stream.send(b": \n\n")
        await stream.send(_sse("ready", PullResponse(model="alpha")))

    # On a busy machine the server itself may be silent for too long: there are more attempts than needed.
    async with _answering(handle) as url, SupervisorClient(url, None, limits=QUICK) as client:
        await client.pull("alpha")


async def test_a_pull_whose_connection_is_lost_is_joined_again() -> None:
    joined: list[int] = []

    async def handle(stream: SocketStream, number: int) -> None:
        joined.append(number)
        await stream.send(HEAD + b": \n\n")
        if number == 2:
            await stream.send(_sse("ready", PullResponse(model="alpha")))

    async with _answering(handle) as url, SupervisorClient(url, None, limits=QUICK) as client:
        await client.pull("alpha")
    assert joined == [0, 1, 2]


async def test_a_pull_is_not_retried_without_end() -> None:
    asked: list[int] = []

    async def handle(stream: SocketStream, number: int) -> None:
        asked.append(number)
        await stream.send(HEAD)

    async with _answering(handle) as url, SupervisorClient(url, None, limits=QUICK) as client:
        with pytest.raises(SupervisorUnreachable, match="before the download finished"):
            await client.pull("alpha")
    assert asked == [0, 1, 2]


async def test_a_refused_connection_is_noticed_at_once() -> None:
    async with SupervisorClient("http://127.0.0.1:1", TOKEN) as client:
        with anyio.fail_after(20), pytest.raises(SupervisorUnreachable, match=r"127\.0\.0\.1:1 refuses connections"):
            await client.status()
        assert client.reachable is False


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("no"), httpx.ConnectTimeout("no"), httpx.ReadTimeout("no"), httpx.RemoteProtocolError("no")],
)
async def test_every_kind_of_silence_is_unreachable(
    quick: SupervisorClient, httpx_mock: HTTPXMock, error: Exception
) -> None:
    httpx_mock.add_exception(error, is_reusable=True)
    for call in (quick.status(), quick.forecast("alpha"), quick.unload("alpha"), quick.pin("alpha", True)):
        with pytest.raises(SupervisorUnreachable):
            await call


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (404, _refusal("unknown_profile"), UnknownProfile),
        (422, _refusal("failed", Failure(kind="not_gguf", message="because")), SupervisorError),
        (503, _refusal("stopping"), SupervisorUnreachable),
        (500, b"<html>proxy</html>", SupervisorUnreachable),
        (200, b"<html>a router's page</html>", SupervisorUnreachable),
        (200, b'{"forecast": 5}', SupervisorUnreachable),
        (401, _refusal("unauthenticated"), SupervisorUnreachable),
    ],
)
async def test_turns_answers_into_the_contract_s_errors(
    quick: SupervisorClient, httpx_mock: HTTPXMock, status: int, content: bytes, error: type[Exception]
) -> None:
    httpx_mock.add_response(status_code=status, content=content)
    with pytest.raises(error):
        await quick.forecast("alpha")


async def test_follows_no_redirect(quick: SupervisorClient, httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(status_code=307, headers={"Location": "http://evil.example/"}, is_reusable=True)
    for call in (quick.status(), quick.pull("alpha")):
        with pytest.raises(SupervisorUnreachable, match="307"):
            await call
    assert {request.url.host for request in httpx_mock.get_requests()} == {"gpu.lan"}


async def test_sends_the_token_and_never_shows_it(httpx_mock: HTTPXMock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="hostler")
    httpx_mock.add_response(status_code=401, content=_refusal("unauthenticated"))
    httpx_mock.add_exception(httpx.ConnectError(TOKEN))
    async with SupervisorClient(f"http://user:{TOKEN}@gpu.lan:8080/?key={TOKEN}", TOKEN, limits=QUICK) as client:
        said = ""
        for _ in range(2):
            with pytest.raises(SupervisorUnreachable) as raised:
                await client.status()
            said += str(raised.value) + repr(client)
    assert "rejected the token" in said
    assert TOKEN not in said + caplog.text
    assert httpx_mock.get_requests()[0].headers["Authorization"] == f"Bearer {TOKEN}"


async def test_reads_events_however_they_are_cut(httpx_mock: HTTPXMock, quick: SupervisorClient) -> None:
    failure = Failure(kind="exited", message="lines with \u2028 and \u0085 in them")
    content = b": ping\r\n\r\n" + _sse(
        "failed", SupervisorErrorResponse(error=SupervisorErrorBody(type="failed", message="", failure=failure))
    )
    httpx_mock.add_response(**_stream(*[bytes([byte]) for byte in content]))
    with pytest.raises(SupervisorError) as raised:
        await quick.pull("alpha")
    assert raised.value.failure == failure


async def test_does_not_close_a_client_that_it_was_given(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(json=msgspec.to_builtins(HostStatus()))
    async with httpx.AsyncClient() as http:
        async with SupervisorClient(URL, None, http=http) as client:
            await client.status()
        assert not http.is_closed


Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
Host = tuple[EngineManager, str]


@pytest.fixture
async def host(scripted: Callable[..., Profile], running: Running, serve_api: ServeAPI) -> AsyncIterator[Host]:
    profiles = [scripted("alpha"), scripted("beta", ready_after=0.1), scripted("broken", exit_code=1)]
    manager = EngineManager(profiles, SupervisorSettings(max_failures=1))
    async with running(manager), serve_api(manager, token=TOKEN, logs=manager.logs) as url:
        yield manager, url


async def test_a_load_tries_a_failed_model_again_at_once(
    scripted: Callable[..., Profile], running: Running, serve_api: ServeAPI, journal: Any
) -> None:
    manager = EngineManager(
        [scripted("a", exit_code=1, exit_times=1)], SupervisorSettings(max_failures=1, backoff_s=60)
    )
    async with (
        running(manager),
        serve_api(manager) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
    ):
        for _ in range(2):
            assert (await http.post("/models/switch", json={"model": "a"})).status_code == 503
        assert len(journal.events("start")) == 1
        assert (await http.post("/models/load", json={"model": "a"})).json()["address"]["model"] == "a"


async def test_the_response_has_the_duration_of_each_phase(host: Host) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=host[1], headers=headers, timeout=20) as http:
        first = (await http.post("/models/switch", json={"model": "beta"})).json()
        assert 0.1 <= sum(first["phase_seconds"].values()) <= first["elapsed_s"] + 0.001
        assert (await http.post("/models/switch", json={"model": "beta"})).json()["phase_seconds"] == {}


async def test_a_key_is_nowhere_but_in_addresses(host: Host) -> None:
    manager, url = host
    key = (await manager.switch("alpha")).key
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as http:
        seen: list[Any] = [(await http.get(path)).text for path in ("/models/status", "/models/available")]
        seen.append((await http.get("/logs/alpha")).text)
        async with http.stream("GET", "/events") as events:
            seen.append(await anext(events.aiter_text()))
        assert "alpha" in seen[-1]
        assert key not in "".join(seen)
        assert key in (await http.post("/models/switch", json={"model": "alpha"})).text


async def test_an_error_does_not_repeat_the_token(quick: SupervisorClient, httpx_mock: HTTPXMock) -> None:
    body = SupervisorErrorResponse(error=SupervisorErrorBody(type="other", message=f"{TOKEN} is wrong"))
    httpx_mock.add_response(status_code=500, content=msgspec.json.encode(body))
    with pytest.raises(SupervisorUnreachable, match=r"returned 500: \*+ is wrong") as caught:
        await quick.status()
    assert TOKEN not in str(caught.value)


def _reset_at_once() -> AttributeError:
    """What httpx raises under uvloop for a connection that was reset as soon as it was made."""
    transport: Any = None
    try:
        transport.getpeername()
    except AttributeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("call", ["status", "unload", "pull", "logs"])
async def test_a_connection_that_is_reset_at_once_means_unreachable(
    quick: SupervisorClient, httpx_mock: HTTPXMock, call: str
) -> None:
    httpx_mock.add_exception(_reset_at_once(), is_reusable=True)
    calls = {"status": quick.status, "unload": lambda: quick.unload("alpha"), "pull": lambda: quick.pull("alpha")}
    with pytest.raises(SupervisorUnreachable):
        if call == "logs":
            await anext(quick.logs("alpha"))
        else:
            await calls[call]()
    assert quick.reachable is False
