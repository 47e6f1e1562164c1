"""The cost of each step of a request: `python -m bench ladder`. Runs a whole gateway in this process, without sockets.

The client's and the backend's connections get their bytes directly, and the request is answered after one step, two steps
and so on: the cost of a step is what it adds. System calls are not included.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from bench.backend import EMBEDDING
from bench.compare import SCENARIOS
from bench.processes import backend
from bench.proxies import Hostler
from hostler.adapters.canonical import Chunk, ResponseHead
from hostler.gateway.app import Gateway
from hostler.gateway.asgi import CONTEXT_KEY, Receive, Scope, Send
from hostler.gateway.auth.middleware import AuthMiddleware
from hostler.gateway.backends.http_connection import BackendConnection
from hostler.gateway.config import read
from hostler.gateway.middleware.request_context import RequestContextMiddleware
from hostler.gateway.proxy import Proxy
from hostler.gateway.server.http_protocol import HTTPProtocol
from hostler.gateway.server.server import bind

BODY = EMBEDDING.partition(b"\r\n\r\n")[2]
#: The answer of a step that stands in for the following ones: as long as the backend's, but another.
STAND_IN = BODY.replace(b"0.125", b"0.375")
EMBED = next(each for each in SCENARIOS if each.name == "embed-1")


class Rung(msgspec.Struct, kw_only=True):
    """The steps up to this one: µs of CPU per request, and what this step adds."""

    part: str
    cpu_us: float
    adds_us: float


class Ear:
    """A transport to nobody. What is written goes to `heard`."""

    def __init__(self, heard: Callable[[bytes], object]) -> None:
        self.write = heard

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


async def answered_by_server(scope: Scope, receive: Receive, send: Send) -> None:
    """The shortest path: the server's protocol alone."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(STAND_IN))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": STAND_IN})


async def answered_by_writer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in place of the remaining steps."""
    writer = scope[CONTEXT_KEY].writer
    writer.begin(ResponseHead(length=len(STAND_IN)))
    await writer.write(Chunk(wire="openai", raw=STAND_IN, is_body=True))
    await writer.end()


class Client:
    """Sends the same request again and again over one connection of the server, one after the other."""

    def __init__(self, server: Any, request: bytes, count: int) -> None:
        self._server, self._request, self._count = server, request, count

    async def ask(self, app: Any, answer: bytes = STAND_IN) -> float:
        """µs of CPU for each request to this application. Raises `RuntimeError` for any other answer."""
        done: list[bytes] = []
        over = asyncio.Event()
        config = self._server.config
        loaded, config.loaded_app = config.loaded_app, app
        client = HTTPProtocol(config, self._server.server_state, {})
        config.loaded_app = loaded

        def heard(data: bytes) -> None:
            done.append(data)
            if len(done) == self._count:
                over.set()
            else:
                loop.call_soon(client.data_received, self._request)

        loop = asyncio.get_running_loop()
        client.connection_made(Ear(heard))  # type: ignore[arg-type]  # as much of a transport as is asked for
        began = time.process_time()
        client.data_received(self._request)
        await over.wait()
        spent = time.process_time() - began
        client.connection_lost(None)
        for each in done:
            if not (each.startswith(b"HTTP/1.1 200") and each.endswith(answer)):
                raise RuntimeError(f"expected {answer[-60:]!r}, got {each!r}")
        return spent / self._count * 1e6

    async def cut(self, layer: Any, app: Any) -> float:
        """The cost of the steps up to this middleware."""
        rest, layer.app = layer.app, answered_by_writer
        try:
            return await self.ask(app)
        finally:
            layer.app = rest


def fake_backend(dispatch: Proxy) -> None:
    """Give the backend a pooled connection that answers at once."""
    (box,) = dispatch._backends.values()
    transport: Any = box.transport
    assert box.endpoint is not None
    pool = transport.pool(box.endpoint)
    loop = asyncio.get_running_loop()
    connection = BackendConnection(loop, box.name, lambda lost: None)
    connection.connection_made(Ear(lambda data: loop.call_soon(connection.data_received, EMBEDDING)))  # type: ignore[arg-type]

    def take() -> BackendConnection:
        connection.served = 0
        return connection

    pool.acquire, pool.release = take, lambda connection: connection.set_idle()


def embed_request() -> bytes:
    """The request of the scenario `embed-1`."""
    body = EMBED.body(Hostler.model).encode()
    first = f"POST {EMBED.path} HTTP/1.1"
    lines = [
        first,
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *Hostler.headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def layers(app: Any) -> list[Any]:
    """The middleware of this request, outermost first, and the proxy."""
    auth = app.middleware_stack
    while not isinstance(auth, AuthMiddleware):
        auth = auth.app
    router: Any = auth._router
    chain = [next(each.app for each in router.routes() if each.operation.path == EMBED.path)]
    while not isinstance(chain[-1], Proxy):
        chain.append(chain[-1].app)
    return chain


async def climb(directory: Path, port: int, requests: int, rounds: int) -> list[Rung]:
    """All rungs, each the minimum of many rounds: medians would depend on other processes."""
    Hostler().command(port, 0, directory)
    configuration = read(directory / "hostler.yaml", {})
    gateway = Gateway(configuration.settings, history=directory / "history.sqlite3")
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(gateway.run, sockets, started=started.set))
        await started.wait()
        app = gateway.app
        *chain, proxy = layers(app)
        fake_backend(proxy)
        client = Client(gateway._server, embed_request(), requests)
        ways: list[tuple[str, Callable[[], Awaitable[float]]]] = [
            ("HTTP to the client", partial(client.ask, answered_by_server))
        ]
        ways += [(_name(layer), partial(client.cut, layer, app)) for layer in chain]
        ways.append(("proxy, adapter, backend", partial(client.ask, app, BODY)))
        least = dict.fromkeys((name for name, _ in ways), float("inf"))
        gc.collect()
        gc.freeze()
        try:
            for _ in range(rounds):
                for name, way in ways:
                    least[name] = min(least[name], await way())
        finally:
            gc.unfreeze()
            gateway.stop()
    rungs: list[Rung] = []
    before = 0.0
    for name, cpu_us in least.items():
        rungs.append(Rung(part=name, cpu_us=cpu_us, adds_us=cpu_us - before))
        before = cpu_us
    return rungs


def _name(layer: object) -> str:
    name = type(layer).__name__
    return f"Starlette, AuthMiddleware, {name}" if isinstance(layer, RequestContextMiddleware) else name


@contextlib.contextmanager
def _log_to_nowhere() -> Iterator[None]:
    """Have each request's log line written, as in a running gateway."""
    root, handler = logging.getLogger(), logging.FileHandler(os.devnull)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


def ladder(requests: int = 400, rounds: int = 9) -> list[Rung]:
    """A row for each step of a small whole answer. Each round sends this many requests to each step."""
    # The backend is there for the gateway's probes alone.
    with tempfile.TemporaryDirectory() as directory, backend() as port, _log_to_nowhere():
        return anyio.run(climb, Path(directory), port, requests, rounds, backend_options={"use_uvloop": True})


def table(rungs: list[Rung]) -> str:
    """A Markdown table."""
    lines = ["| part | adds, µs | so far, µs |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {rung.part} | {rung.adds_us:.0f} | {rung.cpu_us:.0f} |" for rung in rungs)])


if __name__ == "__main__":
    print(table(ladder()))
