"""Restarts under load: a connection that the server has taken is answered, whatever moment it stops at."""

from __future__ import annotations

import asyncio
import collections
import socket
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fakes.ports import free_port

from hostler.gateway.asgi import Receive, Scope, Send
from hostler.gateway.server.server import Server, bind

RESTARTS = 25
BODY = b"x" * 500


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await asyncio.sleep(0.001)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"500")]})
    await send({"type": "http.response.body", "body": BODY})


class Clients:
    """Threads that ask one request after the other; `seen` counts what became of them.

    A client may lose a connection that it has used before, as any that is kept: what counts is that it gets no reset.
    """

    def __init__(self, address: int | str) -> None:
        """`address`: a port, or the path of a Unix socket."""
        self.seen: collections.Counter[str] = collections.Counter()
        self._address = address
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(bool(number % 2),)) for number in range(6)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self, kept: bool) -> None:
        close = b"" if kept else b"Connection: close\r\n"
        while not self._over.is_set():
            try:
                connection = self._connected()
            except (ConnectionRefusedError, FileNotFoundError):
                time.sleep(0.002)
                continue
            with connection:
                used = 0
                while not self._over.is_set() or not used:
                    outcome = _one_request(connection, close)
                    self.seen["closed" if used and outcome == "no answer" else outcome] += 1
                    if outcome != "answered":
                        break
                    used += 1

    def _connected(self) -> socket.socket:
        if isinstance(self._address, int):
            return socket.create_connection(("127.0.0.1", self._address), timeout=10)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(10)
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        return connection


def _one_request(connection: socket.socket, close: bytes) -> str:
    data = b""
    try:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n%b\r\nhello" % close)
        while not data.endswith(BODY):
            piece = connection.recv(65536)
            if not piece:
                return "no answer"
            data += piece
    except ConnectionError as error:
        return type(error).__name__
    return "last answer" if b"connection: close\r\n" in data else "answered"


async def serve_for_a_moment(
    sockets: list[socket.socket], clients: Clients, *, shared: bool = False, is_last: bool
) -> None:
    """Start a server, and stop it under load. The clients end before the last one is stopped."""
    started = anyio.Event()
    server = Server(answering, drain_s=5, shared=shared, started_callback=started.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, sockets)
        await started.wait()
        await anyio.sleep(0.03)  # of load
        if is_last:
            await anyio.to_thread.run_sync(clients.end)
        server.stop()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)])
@pytest.mark.parametrize("shared", [False, True])
async def test_no_request_is_reset_or_lost_over_restarts(shared: bool, anyio_backend: Any) -> None:
    (first,) = bind([("127.0.0.1", 0)], "here")
    port = first.getsockname()[1]
    kept = first.dup() if shared else None
    clients = Clients(port)
    try:
        for number in range(RESTARTS):
            sockets = (
                [first] if not number else [kept.dup()] if kept is not None else bind([("127.0.0.1", port)], "here")
            )
            sockets[0].setblocking(False)
            await serve_for_a_moment(sockets, clients, shared=shared, is_last=number == RESTARTS - 1)
    finally:
        clients.end()
        if kept is not None:
            kept.close()
    assert set(clients.seen) <= {"answered", "last answer", "closed"}
    assert clients.seen["answered"] > RESTARTS


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)])
@pytest.mark.parametrize("used", ["unix", "tcp"])
async def test_no_request_is_reset_or_lost_over_restarts_of_both_kinds_of_sockets(
    tmp_path: Path, used: str, anyio_backend: Any
) -> None:
    path, port = str(tmp_path / "gateway.sock"), free_port()
    addresses = [("127.0.0.1", port), (path, 0)]
    clients = Clients(path if used == "unix" else port)
    try:
        for number in range(RESTARTS):
            await serve_for_a_moment(bind(addresses, "here"), clients, is_last=number == RESTARTS - 1)
    finally:
        clients.end()
    assert set(clients.seen) <= {"answered", "last answer", "closed"}
    assert clients.seen["answered"] > RESTARTS
