"""The LAN transport on real sockets: what is sent, and what ends with its context."""

from __future__ import annotations

import os

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from fakes.raw_backend import AMPLE, ASK, WHOLE, Peer, answering, ask, backend, until

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendBroken, BadRequest
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.transport import Endpoint

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_sends_path_key_headers_and_body_as_they_are(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    request = WireRequest(path="/v1/a%2Fb?c=d", body=b"{}", content_type="application/json", headers=(("X-A", "b"),))
    async with backend(serve) as box:
        await ask(transport, Endpoint(host=box.host, port=box.port, name="box", key="k", base_path="/api"), request)
    assert seen == [
        b"POST /api/v1/a%%2Fb?c=d HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept-encoding: identity\r\nauthorization: Bearer k\r\n"
        b"content-type: application/json\r\ncontent-length: 2\r\nX-A: b\r\n\r\n{}" % box.port
    ]


async def test_a_get_has_no_body_headers_and_an_empty_post_has_a_length(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    async with backend(serve) as box:
        await ask(transport, box, WireRequest(method="GET", path="/health"))
        await ask(transport, box, WireRequest(path="/tokenize"))
    assert b"content-" not in seen[0] and b"content-length: 0\r\n" in seen[1]


@pytest.mark.parametrize(
    "request_",
    [
        WireRequest(path="/a\r\nX: y"),
        WireRequest(path="/a b"),
        WireRequest(path="/a\0"),
        WireRequest(path="/\u00e4"),
        WireRequest(path="http://elsewhere/"),
        WireRequest(path="/", method="GET / HTTP/1.1\r\n"),
        WireRequest(path="/", content_type="a\r\nb: c"),
        WireRequest(path="/", headers=(("a\nb", "c"),)),
        WireRequest(path="/", headers=(("a", "b\r\nc: d"),)),
        WireRequest(path="/", headers=(("a", "b\0"),)),
        WireRequest(path="/", headers=(("a", "\u2028"),)),
        WireRequest(path="/", headers=(("", "b"),)),
    ],
)
async def test_nothing_can_be_smuggled_into_the_head(transport: LanTransport, request_: WireRequest) -> None:
    with pytest.raises(BadRequest):
        await ask(transport, Endpoint(host="127.0.0.1", port=9, name="box"), request_)


async def test_a_key_with_a_line_break_is_refused(transport: LanTransport) -> None:
    with pytest.raises(ValueError, match='backend "box"'):
        await ask(transport, Endpoint(host="127.0.0.1", port=9, name="box", key="a\r\nb: c"))


async def test_an_adapters_framing_and_credentials_are_not_sent(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    names = ("Host", "Content-Length", "Transfer-Encoding", "Connection", "Authorization", "Cookie", "Expect")
    async with backend(serve) as box:
        await ask(transport, box, WireRequest(path="/", body=b"ab", headers=tuple((name, "evil") for name in names)))
    assert b"evil" not in seen[0]


async def test_a_large_body_arrives_whole(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    body = os.urandom(5_000_000)
    async with backend(serve) as box:
        assert await ask(transport, box, WireRequest(path="/", body=body)) == b"body"
    assert seen[0].endswith(body)


async def test_an_early_rejection_of_a_large_body_is_read_and_the_connection_not_kept(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.stream.receive()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with backend(serve) as box:
        async with transport.send(WireRequest(path="/", body=b"x" * 30_000_000), box, AMPLE) as answer:
            assert (answer.head.status, await answer.read(10)) == (413, b"no")
        await until(lambda: transport.open_connections(box) == 0)


async def test_close_all_ends_requests_and_closes_idle_connections(transport: LanTransport) -> None:
    asked, closed = anyio.Event(), 0
    failure: list[BackendBroken] = []

    async def serve(peer: Peer) -> None:
        nonlocal closed
        if b"/idle" in await peer.request():
            await peer.send(WHOLE)
        else:
            asked.set()
        await peer.gone()
        closed += 1

    async def wait(box: Endpoint) -> None:
        with pytest.raises(BackendBroken, match="closed") as caught:
            await ask(transport, box)
        failure.append(caught.value)

    async with backend(serve) as box, anyio.create_task_group() as group:
        group.start_soon(wait, box)
        await asked.wait()
        await ask(transport, box, WireRequest(path="/idle"))
        assert transport.open_connections(box) == 2
        transport.close_all(box)
        await until(lambda: closed == 2)
    assert failure and failure[0].backend == "box" and transport.open_connections(box) == 0


async def test_a_response_is_not_read_outside_its_context(transport: LanTransport) -> None:
    async with backend(answering(WHOLE)[1]) as box:
        async with transport.send(ASK, box, AMPLE) as answer:
            pass
        with pytest.raises(RuntimeError):
            await answer.read(1)
