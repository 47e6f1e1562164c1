"""A backend that answers with whatever bytes a test wants, and a gateway as a process of its own in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psutil
from system.hostler_process import run_hostler

#: The key that the gateway sends to hostile backends.
SECRET = "sk-or-v1-0123456789abcdef/+=zz"

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

_COMPLETION = b'{"choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]}'
_RESPONSE = (
    b'{"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": [{"type": "message", "id": "m1",'
    b' "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "hello", "annotations": []}]}]}'
)

Answer = Callable[["BackendRequest"], Awaitable[None]]


class BackendRequest:
    """A request as received, and the means to answer it. `parts` is the path's end: `chat/completions`, `api/chat`."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        self.method, self.path, _ = first.split(" ", 2)
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body
        self.writer = writer

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body) if self.body else {}  # type: ignore[no-any-return]

    async def send(self, *pieces: bytes) -> None:
        """Raw bytes, each piece in a segment of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def whole(
        self, body: bytes, *, status: int = 200, media_type: str = "application/json", extra: str = ""
    ) -> None:
        """A complete answer."""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        await self.send(head.encode() + body)

    async def chunks(self, *pieces: bytes) -> None:
        """A stream of these pieces, with its end."""
        await self.send(STREAM_HEAD)
        for piece in pieces:
            await self.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await self.send(b"0\r\n\r\n")

    def abort(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


class HostileBackend:
    """`answer` handles each POST; checks by GET are answered at once. `requests` are the POSTs received.

    `closes_after_checks`: no connection of a check is left for the requests of a test.
    """

    def __init__(self) -> None:
        self.answer: Answer = _words
        self.requests: list[BackendRequest] = []
        self.keep_requests = True
        self.closes_after_checks = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                request = BackendRequest(head, await reader.readexactly(length), writer)
                if request.method == "GET":
                    closes = self.closes_after_checks
                    await request.whole(b'{"data": []}', extra="Connection: close\r\n" if closes else "")
                    if closes:
                        return
                    continue
                if self.keep_requests:
                    self.requests.append(request)
                await self.answer(request)
                if writer.is_closing():
                    return


async def _words(request: BackendRequest) -> None:
    await request.whole(_RESPONSE if request.path.endswith("/responses") else _COMPLETION)


@asynccontextmanager
async def hostile_backend() -> AsyncIterator[HostileBackend]:
    """Run a hostile backend until the context ends."""
    backend = HostileBackend()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await backend.serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the test has ended
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024 * 1024)
    backend.port = server.sockets[0].getsockname()[1]
    try:
        yield backend
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class GatewayProcess:
    """A gateway in a process of its own: `http` is a client for it, `process` its process, `log` its standard error."""

    def __init__(self, http: httpx.AsyncClient, process: psutil.Process, errors: Path) -> None:
        self.http = http
        self.process = process
        self._errors = errors

    @property
    def log(self) -> str:
        return self._errors.read_text()

    @property
    def resident(self) -> int:
        """Its memory in bytes."""
        return int(self.process.memory_info().rss)

    @property
    def busy_s(self) -> float:
        """For how long its threads have run, or been ready to run without having a CPU."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        fields = [(thread / "schedstat").read_text().split() for thread in threads]
        return sum(int(ran) + int(waited) for ran, waited, _ in fields) / 1e9

    @property
    def files(self) -> int:
        """Its open file descriptors."""
        return int(self.process.num_fds())


@asynccontextmanager
async def gateway_process(
    folder: Path,
    backends: dict[str, Any],
    *,
    command: str = "gateway",
    environ: dict[str, str] | None = None,
    **more: Any,
) -> AsyncIterator[GatewayProcess]:
    """Run `hostler gateway` in front of these backends."""
    gateway = {
        "listen": ["127.0.0.1:0"],
        "api_keys_file": None,
        "timeouts": {"connect_s": 1, "first_byte_s": 5, "between_bytes_s": 1},
        "spending": {"file": str(folder / "spending.json")},
        **more.pop("gateway", {}),
    }
    # Written as JSON, which is YAML.
    (folder / "hostler.yaml").write_text(json.dumps({"gateway": gateway, "backends": backends, **more}))
    apart = {name: str(folder) for name in ("HOSTLER_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    running = run_hostler(
        command, "--config", str(folder / "hostler.yaml"), errors=folder / "log", environ={**apart, **(environ or {})}
    )
    hostler = await anyio.to_thread.run_sync(running.__enter__)
    try:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=hostler.address, timeout=60, limits=limits, trust_env=False) as http:
            yield GatewayProcess(http, psutil.Process(hostler.process.pid), folder / "log")
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(running.__exit__, None, None, None)


def open_files_of(pid: int) -> int:
    """The open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only their number counts


#: A chat in each protocol: its path, and its body for a model and a text.
CHATS: dict[str, tuple[str, Callable[[str, str, bool], dict[str, Any]]]] = {
    "openai": (
        "/v1/chat/completions",
        lambda model, text, stream: {
            "model": model,
            "stream": stream,
            "messages": [{"role": "user", "content": text}],
        },
    ),
    "responses": ("/v1/responses", lambda model, text, stream: {"model": model, "stream": stream, "input": text}),
    "anthropic": (
        "/v1/messages",
        lambda model, text, stream: {
            "model": model,
            "stream": stream,
            "max_tokens": 10,
            "messages": [{"role": "user", "content": text}],
        },
    ),
    "ollama": (
        "/api/chat",
        lambda model, text, stream: {
            "model": model,
            "stream": stream,
            "messages": [{"role": "user", "content": text}],
        },
    ),
    "lmstudio": ("/api/v1/chat", lambda model, text, stream: {"model": model, "stream": stream, "input": text}),
    "llamacpp": ("/completion", lambda model, text, stream: {"model": model, "stream": stream, "prompt": text}),
}


async def chat(
    http: httpx.AsyncClient, protocol: str, *, stream: bool = False, model: str = "m", text: str = "Hello"
) -> httpx.Response:
    """A chat in the protocol, its answer read to the end."""
    path, body = CHATS[protocol]
    return await http.post(path, json=body(model, text, stream))
