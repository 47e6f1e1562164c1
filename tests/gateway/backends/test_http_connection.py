"""One connection on real sockets: cancellation, backpressure and timeouts."""

from __future__ import annotations

import time

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from fakes.raw_backend import AMPLE, ASK, CHUNKED, WHOLE, Peer, ask, backend, open_files, until

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendTimeout
from hostler.gateway.backends.http_connection import HIGH_WATER
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.transport import Endpoint, Timeouts

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_leaving_the_context_in_mid_stream_closes_at_once(transport: LanTransport) -> None:
    gone = anyio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"5\r\ndata \r\n")
        await peer.gone()
        gone.set()

    async with backend(serve) as box:
        async with transport.send(ASK, box, AMPLE) as answer:
            assert await anext(answer.segments()) == b"data "
        with anyio.fail_after(20):
            await gone.wait()


async def test_a_cancelled_request_is_closed_at_once(transport: LanTransport) -> None:
    asked, gone = anyio.Event(), anyio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        gone.set()

    async with backend(serve) as box, anyio.create_task_group() as group:
        group.start_soon(ask, transport, box)
        await asked.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(20):
            await gone.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cancelling_at_any_moment_leaves_no_socket(transport: LanTransport, host: str) -> None:
    async def serve(peer: Peer) -> None:
        while await peer.request():
            for piece in (WHOLE[:9], WHOLE[9:-2], WHOLE[-2:]):
                await anyio.lowlevel.checkpoint()
                await peer.send(piece)

    finished = 0

    async def run(box: Endpoint, body: bytes) -> None:
        nonlocal finished
        assert await ask(transport, box, WireRequest(path="/", body=body)) == b"body"
        finished += 1

    async with backend(serve) as local:
        box = Endpoint(host=host, port=local.port, name="box")
        await ask(transport, box)
        for body in (b"{}", b"x" * 2_000_000):
            for steps in range(60):
                transport.close_idle(box) if steps % 2 else None
                async with anyio.create_task_group() as group:
                    group.start_soon(run, box, body)
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
        transport.close_idle(box)
        await until(lambda: transport.open_connections(box) == 0)
        assert await ask(transport, box) == b"body"
        assert finished > 0


async def test_two_hundred_dropped_streams_leave_no_open_file(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        with anyio.move_on_after(10):
            while True:
                await peer.send(b"5\r\ndata \r\n")
                await anyio.sleep(0.001)

    async def drop(box: Endpoint, after: int) -> None:
        async with transport.send(ASK, box, AMPLE) as answer:
            segments = answer.segments()
            for _ in range(after):
                await anext(segments)

    async with backend(serve) as box:
        await drop(box, 1)
        await until(lambda: transport.open_connections(box) == 0)
        before = open_files()
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(drop, box, number % 7)
        await until(lambda: open_files() <= before)


async def test_a_slow_reader_pauses_the_stream_instead_of_filling_memory(transport: LanTransport) -> None:
    total, sent = 64 * 1024 * 1024, 0

    async def serve(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = b"x" * 65536
        while sent < total:
            await peer.send(piece)
            sent += len(piece)

    async with backend(serve) as box, transport.send(ASK, box, AMPLE) as answer:
        before = -1
        while before != sent:
            before = sent
            await anyio.sleep(0.05)
        assert sent < total / 2
        largest = got = 0
        async for segment in answer.segments():
            largest, got = max(largest, len(segment)), got + len(segment)
        assert got == total and largest <= HIGH_WATER + 256 * 1024


async def test_a_slow_reader_is_not_a_slow_backend(transport: LanTransport) -> None:
    timeouts = Timeouts(first_byte_s=20, between_bytes_s=0.5)
    more = anyio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\nbody\r\n")
        await more.wait()
        await peer.send(b"4\r\nmore\r\n0\r\n\r\n")

    async with backend(serve) as box, transport.send(ASK, box, timeouts) as answer:
        segments = answer.segments()
        assert await anext(segments) == b"body"
        await anyio.sleep(0.75)  # not to wait for something: longer than the backend may take
        more.set()
        assert await anext(segments) == b"more"


async def test_silence_before_the_head_is_a_timeout(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200")
        await peer.gone()

    async with backend(serve) as box:
        with pytest.raises(BackendTimeout, match="did not answer in time"):
            async with transport.send(ASK, box, Timeouts(first_byte_s=0.05)):
                pass
        await until(lambda: transport.open_connections(box) == 0)


async def test_silence_in_mid_stream_has_a_timeout_of_its_own(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\nbody\r\n")
        await peer.gone()

    async with backend(serve) as box:
        started = time.monotonic()
        with pytest.raises(BackendTimeout, match="stopped answering"):
            async with transport.send(ASK, box, Timeouts(first_byte_s=600, between_bytes_s=0.1)) as answer:
                async for segment in answer.segments():
                    assert segment == b"body"
        assert time.monotonic() - started >= 0.09


async def test_a_backend_that_does_not_read_a_large_body_is_a_timeout(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await anyio.sleep_forever()

    async with backend(serve) as box:
        with pytest.raises(BackendTimeout):
            async with transport.send(WireRequest(path="/", body=b"x" * 30_000_000), box, Timeouts(first_byte_s=0.1)):
                pass
