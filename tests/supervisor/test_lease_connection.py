"""The gateway's end of the connection, against servers that are no supervisors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from hostler.supervisor.contract import SupervisorUnreachable
from hostler.supervisor.lease_connection import IncompatibleSupervisor, LeaseConnection, open_connection
from hostler.supervisor.lease_frames import AskFrame, EventFrame, PingFrame, ReleaseFrame, WelcomeFrame, encode_frames

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def answering(*parts: bytes, close: bool = False) -> AsyncIterator[str]:
    """A server that sends these bytes, whatever it is sent."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            for part in parts:
                await stream.send(part)
                await anyio.sleep(0.005)
            if not close:
                await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_rejection_does_not_repeat_the_token() -> None:
    body = b'{"error": {"type": "t", "message": "do not send secret-token-1"}}'
    async with answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)) as url:
        with pytest.raises(SupervisorUnreachable, match=r"returned 400: do not send \*+$"):
            await open_connection(url, "secret-token-1", lambda frame: None, timeout_s=5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", "is of an older release"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "rejected the token"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\n<h1>", "not as a supervisor does"),
        (
            b'HTTP/1.1 426 Upgrade\r\nContent-Length: 42\r\n\r\n{"error":{"type":"t","message":"update it"}}'[:-2]
            + b"}}",
            "returned 426",
        ),
    ],
)
async def test_a_rejection_says_what_to_do(answer: bytes, words: str) -> None:
    async with answering(answer) as url:
        with pytest.raises(SupervisorUnreachable, match=words):
            await open_connection(url, "t", lambda frame: None, timeout_s=5)


async def test_only_another_release_is_incompatible() -> None:
    async with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as url:
        with pytest.raises(IncompatibleSupervisor):
            await open_connection(url, None, lambda frame: None, timeout_s=5)
    async with answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as url:
        with pytest.raises(SupervisorUnreachable) as raised:
            await open_connection(url, None, lambda frame: None, timeout_s=5)
        assert not isinstance(raised.value, IncompatibleSupervisor)


async def test_no_answer_and_no_server_are_told_apart() -> None:
    async with answering() as url:
        with pytest.raises(SupervisorUnreachable, match=r"did not answer within 0\.2 s"):
            await open_connection(url, None, lambda frame: None, timeout_s=0.2)
    async with answering(close=True) as url:
        with pytest.raises(SupervisorUnreachable, match="closed the connection without an answer"):
            await open_connection(url, None, lambda frame: None, timeout_s=5)
    with pytest.raises(SupervisorUnreachable, match="refuses connections"):
        await open_connection("http://127.0.0.1:1", None, lambda frame: None, timeout_s=5)


@pytest.mark.parametrize(
    "parts",
    [
        [HEAD, b"rubbish\r\n"],
        [HEAD, chunk(b"\xff\xff\xff\xff")],
        [HEAD, chunk(b"\0\0\0\x02\x91\xa1")],
        [HEAD, chunk(encode_frames([WelcomeFrame(1)])), b"0\r\n\r\n"],
    ],
)
async def test_an_answer_that_is_no_stream_of_frames_ends_the_connection(parts: list[bytes]) -> None:
    async with answering(*parts) as url:
        connection = await open_connection(url, None, lambda frame: None, timeout_s=5)
        with anyio.fail_after(5):
            await connection.closed.wait()
        assert connection.lost


async def test_a_fault_of_the_gateway_itself_is_not_taken_for_the_supervisors() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    def on_frame(frame: EventFrame) -> None:
        raise KeyError("a fault")

    async with answering(HEAD, chunk(encode_frames([PingFrame()]))) as url:
        connection = await open_connection(url, None, on_frame, timeout_s=5)
        with anyio.fail_after(5):
            await connection.closed.wait()
    assert [type(each["exception"]) for each in reported] == [KeyError]
    assert connection.lost == "sent a frame that could not be handled"


async def test_frames_arrive_however_they_are_cut() -> None:
    received: list[EventFrame] = []
    data = encode_frames([WelcomeFrame(7), PingFrame()])
    async with answering(HEAD + chunk(data[:3]), chunk(data[3:9]), chunk(data[9:])) as url:
        await open_connection(url, None, received.append, timeout_s=5)
        with anyio.fail_after(5):
            while len(received) < 2:  # noqa: ASYNC110 - frames arrive by themselves
                await anyio.sleep(0.002)
    assert received == [WelcomeFrame(7), PingFrame()]


class Written(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


async def test_the_first_request_for_a_lease_goes_at_once_and_the_rest_of_a_turn_together() -> None:
    connection, written = LeaseConnection(asyncio.get_running_loop(), b"head", lambda frame: None), Written()
    connection.connection_made(written)
    release, asks = ReleaseFrame(1), [AskFrame(number, "a") for number in (2, 3, 4)]
    connection.send(release)
    assert written.writes == [b"head"]
    for ask in asks:
        connection.send(ask)
    first = chunk(encode_frames([release, asks[0]]))
    assert written.writes == [b"head", first]
    await anyio.lowlevel.checkpoint()
    assert written.writes == [b"head", first, chunk(encode_frames(asks[1:]))]
    connection.send(asks[0])  # the next turn
    assert written.writes[3:] == [chunk(encode_frames(asks[:1]))]
    await anyio.lowlevel.checkpoint()
    assert len(written.writes) == 4
