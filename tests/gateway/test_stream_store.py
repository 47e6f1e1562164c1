"""Streams that outlive their client's connection, within limits of size and time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from hostler.gateway.asgi import Message
from hostler.gateway.context import Client
from hostler.gateway.stream_store import PIECE, OffsetLost, ResumableStream, StreamLimits, StreamStore

pytestmark = pytest.mark.anyio

ANNA, BEN = (Client(name=name, identity=f"{name}-1") for name in ("anna", "ben"))


class Later:
    """Calls that are due after a time, which tests let pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], object]]] = []

    def __call__(self, seconds: float, call: Callable[[], object]) -> Any:
        entry = (seconds, call)
        self.calls.append(entry)
        later = self

        class Handle:
            def cancel(self) -> None:
                if entry in later.calls:
                    later.calls.remove(entry)

        return Handle()

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for _, call in calls:
            call()


class Clients:
    """A store whose streams have clients that collect what they get."""

    def __init__(self, *, max_stream: int = 100, max_size: int = 1000) -> None:
        self.later = Later()
        limits = StreamLimits(max_stream=max_stream, max_size=max_size, keep_s=300, detached_s=60)
        self.store = StreamStore(limits, wall=lambda: 1000.0, later=self.later)
        self.received: list[bytes] = []

    async def send(self, message: Message) -> None:
        self.received.append(message.get("body", b""))

    async def start(self, conversation: str, client: Client = ANNA, status: int = 200) -> ResumableStream:
        stream = self.store.open(client, conversation, self.send)
        assert stream is not None
        headers = [(b"content-type", b"text/event-stream")]
        await stream.send({"type": "http.response.start", "status": status, "headers": headers})
        return stream


async def write(stream: ResumableStream, data: bytes) -> None:
    await stream.send({"type": "http.response.body", "body": data, "more_body": True})


async def read(stream: ResumableStream, start: int = 0) -> bytes:
    return b"".join([piece async for piece in stream.follow(start)])


async def test_what_is_sent_after_the_client_has_left_is_kept() -> None:
    clients = Clients()
    stream = await clients.start("c")
    await write(stream, b"one ")
    assert stream.detach()
    await write(stream, b"two")
    stream.finish()
    assert b"".join(clients.received) == b"one "
    assert (await read(stream), await read(stream, 4), await read(stream, 99)) == (b"one two", b"two", b"")
    assert stream.media_type == "text/event-stream"
    assert not stream.detach(), "it has ended"


async def test_a_follower_gets_what_comes_as_it_comes() -> None:
    clients = Clients()
    stream = await clients.start("c")
    got: list[bytes] = []
    async with anyio.create_task_group() as tasks:

        async def follow() -> None:
            got.append(await read(stream))

        tasks.start_soon(follow)
        for piece in (b"one ", b"two ", b"three"):
            await anyio.lowlevel.checkpoint()
            await write(stream, piece)
        stream.finish()
    assert got == [b"one two three"]


async def test_a_follower_gets_a_long_stream_in_pieces() -> None:
    clients = Clients(max_stream=3 * PIECE, max_size=3 * PIECE)
    stream = await clients.start("c")
    await write(stream, b"x" * (2 * PIECE + 1))
    stream.finish()
    assert [len(piece) async for piece in stream.follow(0)] == [PIECE, PIECE, 1]


async def test_the_beginning_of_a_long_stream_is_dropped() -> None:
    clients = Clients(max_stream=10)
    stream = await clients.start("c")
    await write(stream, b"0123456789")
    await write(stream, b"abc")
    stream.finish()
    assert (stream.dropped, stream.info.total_bytes, await read(stream, 3)) == (3, 13, b"3456789abc")
    with pytest.raises(OffsetLost):
        await read(stream, 2)


async def test_streams_that_have_ended_make_room_for_others_the_oldest_first() -> None:
    clients = Clients(max_size=25)
    ended = [await clients.start(name) for name in ("a", "b")]
    for stream in ended:
        await write(stream, b"0123456789")
        stream.finish()
    going = await clients.start("c")
    await write(going, b"0123456789")
    assert [clients.store.has(stream) for stream in (*ended, going)] == [False, True, True]
    other = await clients.start("d")
    await write(other, b"x" * 20)
    assert [clients.store.has(stream) for stream in (*ended, going, other)] == [False, False, True, True]
    assert (going.size, other.size) == (10, 15)


async def test_a_stream_is_kept_for_a_while_after_its_end() -> None:
    clients = Clients()
    stream = await clients.start("c")
    stream.finish()
    assert [seconds for seconds, _ in clients.later.calls] == [300]
    clients.later.run()
    assert clients.store.find(ANNA, "c") is None


async def test_a_forgotten_stream_takes_no_memory() -> None:
    clients = Clients()
    first = await clients.start("c")
    await write(first, b"0123456789")
    first.finish()
    last = weakref.ref(first)
    await clients.start("c")
    del first
    gc.collect()
    assert last() is None, "its timer refers to it"
    assert clients.later.calls == []


async def test_a_stream_that_has_ended_keeps_neither_its_request_nor_its_connection() -> None:
    class Connection:
        async def send(self, message: Message) -> None: ...

        def cancel(self) -> None: ...

    clients, connection = Clients(), Connection()
    stream = clients.store.open(ANNA, "c", connection.send)
    assert stream is not None
    stream.cancel = connection.cancel
    await write(stream, b"one")
    stream.finish()
    kept = weakref.ref(connection)
    del connection
    gc.collect()
    assert kept() is None
    assert await read(stream) == b"one"


async def test_following_a_stream_that_has_ended_does_not_keep_it_longer() -> None:
    clients = Clients()
    stream = await clients.start("c")
    await write(stream, b"one")
    stream.finish()
    assert await read(stream) == b"one"
    assert [seconds for seconds, _ in clients.later.calls] == [300]


async def test_a_stream_without_any_client_is_stopped_after_a_while() -> None:
    clients = Clients()
    stream = await clients.start("c")
    cancelled: list[str] = []
    stream.cancel = lambda: cancelled.append("c")
    stream.detach()
    assert [seconds for seconds, _ in clients.later.calls] == [60]
    follower = stream.follow(0)
    await write(stream, b"x")
    assert await anext(follower) == b"x"
    assert clients.later.calls == [], "it has a client again"
    await follower.aclose()
    clients.later.run()
    assert cancelled == ["c"]


async def test_a_stop_ends_streams_without_any_client_and_no_others() -> None:
    clients = Clients()
    cancelled: list[str] = []

    async def start(name: str) -> ResumableStream:
        stream = await clients.start(name)
        stream.cancel = lambda: cancelled.append(name)
        await write(stream, b"x")
        return stream

    connected, left, followed = [await start(name) for name in ("connected", "left", "followed")]
    assert left.detach() and followed.detach()
    follower = followed.follow(0)
    await anext(follower)
    clients.store.stop()
    assert cancelled == ["left"]
    await follower.aclose()
    assert cancelled == ["left", "followed"]
    assert not connected.detach(), "it ends as without a conversation"


async def test_a_conversation_has_one_stream_and_each_client_its_own() -> None:
    clients = Clients()
    first, other = await clients.start("c"), await clients.start("c", BEN)
    cancelled: list[str] = []
    first.cancel, other.cancel = (lambda: cancelled.append("first")), (lambda: cancelled.append("other"))
    second = await clients.start("c")
    assert cancelled == ["first"]
    assert (clients.store.find(ANNA, "c"), clients.store.find(BEN, "c")) == (second, other)
    await write(first, b"late")
    assert (first.size, first.detach()) == (0, False)
    await clients.start("d::m")
    assert [info.conversation for info in clients.store.matching(ANNA, ("c", "d"))] == ["c", "d::m"]
    assert [info.conversation for info in clients.store.matching(BEN, ("c", "d"))] == ["c"]


async def test_clients_without_keys_may_come_back_with_another_address() -> None:
    clients = Clients()
    stream = await clients.start("c", Client(name="10.0.0.1"))
    assert clients.store.find(Client(name="10.0.0.2"), "c") is stream


async def test_a_refused_request_leaves_no_stream() -> None:
    clients = Clients()
    await clients.start("c", status=429)
    assert clients.store.matching(ANNA, ("c",)) == []


async def test_a_server_that_raises_for_a_client_that_has_left_ends_nothing() -> None:
    clients = Clients()

    async def fail(message: Message) -> None:
        raise OSError("the client is gone")

    stream = clients.store.open(ANNA, "c", fail)
    assert stream is not None
    await write(stream, b"one ")
    await write(stream, b"two")
    stream.finish()
    assert await read(stream) == b"one two"
