"""The cost of each step of a request: `python -m bench ladder`. Runs a whole gateway in this process, without sockets.

The client's and the backend's connections get their bytes directly, and the request is answered after one step, two steps
and so on: the cost of a step is what it adds. System calls are not included.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
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

REQUESTS = 400
ROUNDS = 9
BODY = EMBEDDING.partition(b"\r\n\r\n")[2]


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
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def answered_by_writer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in place of the remaining steps."""
    writer = scope[CONTEXT_KEY].writer
    writer.begin(ResponseHead(length=len(BODY)))
    await writer.write(Chunk(wire="openai", raw=BODY, is_body=True))
    await writer.end()


async def requests(app: Any, server: Any, heads: bytes) -> float:
    """µs of CPU for each of many requests, one after the other on one connection."""
    done: list[bytes] = []
    over = asyncio.Event()
    config = server.config
    loaded, config.loaded_app = config.loaded_app, app
    client = HTTPProtocol(config, server.server_state, {})
    config.loaded_app = loaded

    def heard(data: bytes) -> None:
        done.append(data)
        if len(done) == REQUESTS:
            over.set()
        else:
            loop.call_soon(client.data_received, heads)

    loop = asyncio.get_running_loop()
    client.connection_made(Ear(heard))  # type: ignore[arg-type]  # as much of a transport as is asked for
    began = time.process_time()
    client.data_received(heads)
    await over.wait()
    spent = time.process_time() - began
    client.connection_lost(None)
    if not all(answer.startswith(b"HTTP/1.1 200") for answer in done):
        raise RuntimeError(f"not answered: {done[-1][:300]!r}")
    return spent / REQUESTS * 1e6


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


async def climb(directory: Path, port: int) -> list[Rung]:
    """All rungs, each the minimum of many rounds: medians would depend on other processes."""
    Hostler().command(port, 0, directory)
    configuration = read(directory / "hostler.yaml", {})
    gateway = Gateway(configuration.settings, history=directory / "history.sqlite3")
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    scenario = next(each for each in SCENARIOS if each.name == "embed-1")
    body = scenario.body(Hostler.model).encode()
    lines = ["host: 127.0.0.1", "content-type: application/json", f"content-length: {len(body)}", *Hostler.headers]
    data = (
        f"POST {scenario.path} HTTP/1.1\r\n".encode()
        + "".join(f"{line}\r\n" for line in lines).encode()
        + b"\r\n"
        + body
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(gateway.run, sockets, started=started.set))
        await started.wait()
        server: Any = gateway._server
        app: Any = gateway.app
        auth: Any = app.middleware_stack
        while not isinstance(auth, AuthMiddleware):
            auth = auth.app
        match = next(each for each in auth._router.routes() if each.operation.path == scenario.path)
        chain: list[Any] = [match.app]
        while hasattr(chain[-1], "app"):
            chain.append(chain[-1].app)
        fake_backend(chain[-1])
        gc.freeze()
        ways: list[tuple[str, Callable[[], Awaitable[float]]]] = [
            ("HTTP to the client", partial(requests, answered_by_server, server, data))
        ]
        for layer in chain[:-1]:
            ways.append((_name(layer), partial(_cut, layer, app, server, data)))
        ways.append(("proxy, adapter, backend", partial(requests, app, server, data)))
        least = dict.fromkeys((name for name, _ in ways), float("inf"))
        for _ in range(ROUNDS):
            for name, way in ways:
                least[name] = min(least[name], await way())
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


async def _cut(layer: Any, app: Any, server: Any, data: bytes) -> float:
    """The cost of the steps up to this middleware."""
    rest, layer.app = layer.app, answered_by_writer
    try:
        return await requests(app, server, data)
    finally:
        layer.app = rest


def ladder() -> list[Rung]:
    """A row for each step of a small whole answer."""
    logging.basicConfig(level="INFO", filename="/dev/null")
    # The backend is there for the gateway's probes alone.
    with tempfile.TemporaryDirectory() as directory, backend() as port:
        return anyio.run(climb, Path(directory), port, backend_options={"use_uvloop": True})


def table(rungs: list[Rung]) -> str:
    """A Markdown table."""
    lines = ["| part | adds, µs | so far, µs |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {rung.part} | {rung.adds_us:.0f} | {rung.cpu_us:.0f} |" for rung in rungs)])


if __name__ == "__main__":
    print(table(ladder()))
