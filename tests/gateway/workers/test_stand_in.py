"""A worker accepts the connections of others while these do not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from hostler.gateway.server.server import bind
from hostler.gateway.workers.stand_in import StandIn

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def standing_in(sock: socket.socket) -> AsyncIterator[StandIn]:
    """For worker 2, which has this socket. What connects is greeted."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        await reader.read()
        writer.close()

    async def listen(sock: socket.socket) -> asyncio.Server:
        return await asyncio.start_server(greet, sock=sock)

    stand_in = StandIn({2: [sock.dup()]}, listen)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stand_in.run)
        yield stand_in
        stand_in.update(())
        await until(stand_in, set())
        tasks.cancel_scope.cancel()
    stand_in.close()


async def until(stand_in: StandIn, numbers: set[int]) -> None:
    with anyio.fail_after(20):
        while set(stand_in.numbers) != numbers:
            await anyio.lowlevel.checkpoint()


async def test_it_accepts_what_waits_and_leaves_the_socket_to_its_owner_again() -> None:
    (sock,) = bind([("127.0.0.1", 0)], "gateway.listen")
    with sock:
        async with standing_in(sock) as stand_in, await anyio.connect_tcp(*sock.getsockname()) as waiting:
            stand_in.update((2, 3))  # the sockets of worker 3 are unknown
            with anyio.fail_after(20):
                assert await waiting.receive() == b"here"
            assert set(stand_in.numbers) == {2}
            stand_in.update(())
            await until(stand_in, set())
            async with await anyio.connect_tcp(*sock.getsockname()) as later:
                accepted, peer = sock.accept()
                assert peer == later.extra(anyio.abc.SocketAttribute.local_address)
                accepted.close()
            await waiting.send(b"still connected")


async def test_it_may_be_closed_while_it_begins_to_listen() -> None:
    sockets = bind([("127.0.0.1", 0), ("127.0.0.1", 0)], "gateway.listen")
    servers: list[asyncio.Server] = []

    async def listen(sock: socket.socket) -> asyncio.Server:
        stand_in.close()
        servers.append(await asyncio.start_server(lambda *_: None, sock=sock))
        return servers[-1]

    stand_in = StandIn({2: sockets}, listen)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stand_in.run)
        stand_in.update((2,))
        with anyio.fail_after(20):
            while len(servers) < 2:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    for server in servers:
        server.close()


async def test_once_closed_it_takes_no_socket_any_more() -> None:
    (sock,) = bind([("127.0.0.1", 0)], "gateway.listen")
    with sock:
        async with standing_in(sock) as stand_in:
            stand_in.close()
            stand_in.update((2,))
            await anyio.lowlevel.checkpoint()
            assert not stand_in.numbers
