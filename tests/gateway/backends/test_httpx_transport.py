"""The httpx transport: what is sent, what is removed from responses, and how errors are translated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import anyio
import httpx
import msgspec
import pytest
from fakes.fake_openrouter import start_openrouter
from pytest_httpx import HTTPXMock, IteratorStream

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendBroken, BackendTimeout, BackendUnavailable, BadRequest
from hostler.gateway.backends.httpx_transport import HttpxTransport
from hostler.gateway.backends.transport import Endpoint, EndpointOptions, Timeouts, TlsOptions

pytestmark = pytest.mark.anyio

CLOUD = Endpoint(host="cloud.example", port=443, name="cloud", key="sk-secret", tls=True, base_path="/api")
URL = "https://cloud.example/api/v1/chat/completions"
CHAT = WireRequest(path="/v1/chat/completions", body=b'{"model": "m"}', headers=(("X-Title", "Our gateway"),))
STREAM = WireRequest(path="/v1/chat/completions", body=b'{"model": "m", "stream": true}')
QUICK = Timeouts(connect_s=1, first_byte_s=0.05, between_bytes_s=0.05)


@pytest.fixture
async def transport() -> AsyncIterator[HttpxTransport]:
    subject = HttpxTransport()
    yield subject
    await subject.aclose()


async def test_sends_the_request_with_our_key_and_no_library_headers(
    transport: HttpxTransport, httpx_mock: HTTPXMock
) -> None:
    httpx_mock.add_response(url=URL, json={})
    async with transport.send(CHAT, CLOUD, Timeouts()) as answer:
        assert await answer.read(100) == b"{}"
        assert answer.complete
    sent = httpx_mock.get_requests()[0]
    assert sent.content == CHAT.body
    assert sent.headers["authorization"] == "Bearer sk-secret"
    assert sent.headers["x-title"] == "Our gateway"
    assert sent.headers["user-agent"] == "hostler"
    assert sent.headers["accept-encoding"] == "identity"


async def test_configured_headers_may_have_letters_of_latin_1(transport: HttpxTransport, httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=URL)
    request = WireRequest(path=CHAT.path, body=CHAT.body, headers=(("X-Title", "Tür"),))
    async with transport.send(request, CLOUD, Timeouts()):
        pass
    assert dict(httpx_mock.get_requests()[0].headers.raw)[b"X-Title"] == "Tür".encode("latin-1")


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "Host", "User-Agent", "Content-Length"])
async def test_the_transports_own_headers_cannot_be_replaced(
    transport: HttpxTransport, httpx_mock: HTTPXMock, name: str
) -> None:
    httpx_mock.add_response(url=URL)
    request = WireRequest(path=CHAT.path, body=CHAT.body, headers=((name, "9999"),))
    async with transport.send(request, CLOUD, Timeouts()):
        pass
    assert httpx_mock.get_requests()[0].headers.get(name) != "9999"


async def test_connection_headers_and_cookies_are_removed(transport: HttpxTransport, httpx_mock: HTTPXMock) -> None:
    headers = {
        "Set-Cookie": "a=b", "Server": "x", "Access-Control-Allow-Origin": "*", "X-Accel-Buffering": "no",
        "Retry-After": "7", "Content-Type": "application/json",
    }  # fmt: skip
    httpx_mock.add_response(url=URL, status_code=429, headers=headers, content=b"{}", is_reusable=True)
    async with transport.send(CHAT, CLOUD, Timeouts()) as answer:
        assert answer.head.status == 429
        assert answer.head.length == 2
        assert dict(answer.headers) == {"retry-after": "7", "content-type": "application/json"}
    async with transport.send(CHAT, CLOUD, Timeouts()):
        pass
    assert "cookie" not in httpx_mock.get_requests()[1].headers


async def test_redirects_are_not_followed(transport: HttpxTransport, httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=URL, status_code=302, headers={"Location": "https://evil.example/"})
    async with transport.send(CHAT, CLOUD, Timeouts()) as answer:
        assert answer.head.status == 302
    assert len(httpx_mock.get_requests()) == 1


async def test_the_body_is_streamed(transport: HttpxTransport, httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=URL, stream=IteratorStream([b"data: 1\n\n", b"data: 2\n\n"]))
    async with transport.send(CHAT, CLOUD, Timeouts()) as answer:
        assert [piece async for piece in answer.segments()] == [b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (httpx.ConnectError("x"), BackendUnavailable),
        (httpx.ConnectTimeout("x"), BackendUnavailable),
        (httpx.ProxyError("x"), BackendUnavailable),
        (httpx.ReadError("x"), BackendBroken),
        (httpx.WriteError("x"), BackendBroken),
        (httpx.WriteTimeout("x"), BackendTimeout),
        (httpx.RemoteProtocolError("x"), BackendBroken),
    ],
)
async def test_httpx_errors_become_backend_errors_without_addresses(
    transport: HttpxTransport, httpx_mock: HTTPXMock, error: Exception, ours: type[Exception]
) -> None:
    httpx_mock.add_exception(error)
    with pytest.raises(ours) as raised:
        async with transport.send(CHAT, CLOUD, Timeouts()):
            pass
    assert "example" not in str(raised.value)
    if isinstance(raised.value, BackendUnavailable):
        assert raised.value.timed_out is isinstance(error, httpx.ConnectTimeout)


async def test_a_missing_head_is_a_timeout(transport: HttpxTransport, httpx_mock: HTTPXMock) -> None:
    async def never(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    httpx_mock.add_callback(never)
    with pytest.raises(BackendTimeout):
        async with transport.send(CHAT, CLOUD, Timeouts(connect_s=0.01, first_byte_s=0.05)):
            pass


@pytest.mark.parametrize("first", [b"", b"data: 1\n\n"])
async def test_silence_is_a_timeout_before_and_after_the_first_byte(
    transport: HttpxTransport, httpx_mock: HTTPXMock, first: bytes
) -> None:
    class Silent(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            if first:
                yield first
            await asyncio.Event().wait()

    httpx_mock.add_response(url=URL, stream=Silent())
    got = []
    with pytest.raises(BackendTimeout):
        async with transport.send(CHAT, CLOUD, QUICK) as answer:
            async for piece in answer.segments():
                got.append(piece)
    assert b"".join(got) == first


async def test_an_answer_that_ends_in_the_middle_is_broken() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100\r\n\r\ndata: 1\n\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(host="127.0.0.1", port=port, name="cloud")
        transport = HttpxTransport()
        got = []
        with pytest.raises(BackendBroken):
            async with transport.send(CHAT, endpoint, Timeouts()) as answer:
                async for piece in answer.segments():
                    got.append(piece)
        assert got == [b"data: 1\n\n"]
        await transport.aclose()


async def test_an_invalid_path_is_a_bad_request(transport: HttpxTransport) -> None:
    with pytest.raises(BadRequest):
        async with transport.send(WireRequest(path="/v1/\x00", body=b""), CLOUD, Timeouts()):
            pass


@pytest.mark.parametrize("begun", [False, True])
async def test_close_all_ends_waiting_requests(transport: HttpxTransport, begun: bool) -> None:
    async with start_openrouter("cloud") as router:
        router.default = "stall_after_words" if begun else "stall"
        endpoint = Endpoint(host="127.0.0.1", port=int(router.url.split(":")[2].split("/")[0]), name="cloud")
        other = Endpoint(host="127.0.0.1", port=1, name="other")
        waits = anyio.Event()

        async def ask() -> None:
            with pytest.raises(BackendTimeout):
                async with transport.send(STREAM, endpoint, Timeouts()) as answer:
                    await anext(answer.segments())
                    waits.set()
                    async for _ in answer.segments():
                        pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            if begun:
                await waits.wait()
            else:
                while not router.requests:  # noqa: ASYNC110 - the other end of a socket has no event
                    await anyio.sleep(0.01)
            transport.close_all(other)
            await anyio.wait_all_tasks_blocked()
            transport.close_all(endpoint)


async def test_a_connection_that_is_reset_at_once_is_an_unreachable_backend(
    transport: HttpxTransport, httpx_mock: HTTPXMock
) -> None:
    # Under uvloop it has no socket any more when anyio looks at it.
    httpx_mock.add_exception(
        AttributeError("'NoneType' object has no attribute 'getpeername'", name="getpeername", obj=None)
    )
    with pytest.raises(BackendUnavailable):
        async with transport.send(CHAT, CLOUD, Timeouts()):
            pass


async def test_a_connection_is_tried_again_if_its_time_was_over_while_the_process_was_suspended(
    transport: HttpxTransport, httpx_mock: HTTPXMock
) -> None:
    def suspended(request: httpx.Request) -> httpx.Response:
        time.sleep(0.3)
        raise httpx.ConnectTimeout("in time")

    httpx_mock.add_callback(suspended)
    httpx_mock.add_response(json={})
    async with transport.send(CHAT, CLOUD, Timeouts(connect_s=0.2)) as answer:
        assert answer.head.status == 200
    assert len(httpx_mock.get_requests()) == 2


async def test_a_connection_that_was_not_accepted_in_time_is_not_tried_again(
    transport: HttpxTransport, httpx_mock: HTTPXMock
) -> None:
    httpx_mock.add_exception(httpx.ConnectTimeout("in time"))
    with pytest.raises(BackendUnavailable) as caught:
        async with transport.send(CHAT, CLOUD, Timeouts(connect_s=60)):
            pass
    assert caught.value.timed_out
    assert len(httpx_mock.get_requests()) == 1


@pytest.mark.parametrize(("variable", "value"), [("SSL_CERT_FILE", "/no/such.pem"), ("SSL_CERT_DIR", "/no/such")])
async def test_certificates_do_not_matter_for_a_backend_without_tls(
    transport: HttpxTransport, httpx_mock: HTTPXMock, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    plain = msgspec.structs.replace(CLOUD, tls=False, port=80)
    httpx_mock.add_response(url=URL.replace("https:", "http:"), json={})
    async with transport.send(CHAT, plain, Timeouts()) as answer:
        assert await answer.read(100) == b"{}"
    with pytest.raises(BackendUnavailable, match=f"{variable} names {value}"):
        async with transport.send(CHAT, CLOUD, Timeouts()):
            pass


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:99999", "http://[::1", "://", "socks4://127.0.0.1:1", "ftp://x"])
async def test_what_is_no_proxy_is_named(transport: HttpxTransport, proxy: str) -> None:
    endpoint = msgspec.structs.replace(CLOUD, options=EndpointOptions(proxy=proxy))
    with pytest.raises(BackendUnavailable, match="proxy does not name a proxy that can be used"):
        async with transport.send(CHAT, endpoint, Timeouts()):
            pass


async def test_a_proxy_with_tls_is_verified_with_the_certificates_of_the_backend(transport: HttpxTransport) -> None:
    options = EndpointOptions(proxy="https://127.0.0.1:1", tls=TlsOptions(ca_file="/no/ca.pem", insecure=True))
    with pytest.raises(BackendUnavailable, match=r"ca_file names /no/ca\.pem"):
        async with transport.send(CHAT, msgspec.structs.replace(CLOUD, options=options), Timeouts()):
            pass
