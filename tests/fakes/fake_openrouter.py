"""A scripted OpenRouter on loopback: it answers normally, or with any of the failures seen in the field."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

WORDS = ("One", " two", " three")
COST = 0.25


class ReceivedRequest:
    """A request as received."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        body: dict[str, Any] = json.loads(self.body or b"{}")
        return body


class FakeOpenRouter:
    """`script` holds the behaviours of the next requests, `default` the one of all others. See `BEHAVIOURS`.

    A behaviour is a name, or a status with its `Retry-After`: `(429, "1")`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.script: list[Any] = []
        self.default: Any = "answer"
        self.requests: list[ReceivedRequest] = []
        self.health_checks: list[str] = []
        self.health_check_status = 200
        self.open = self.busy = 0
        self.url = ""
        self.answered = 0
        self._running = asyncio.Event()
        self._running.set()
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        # Bound but not listening: reserves the port while the server is stopped, so that no outgoing connection gets it.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self._port = self._reservation.getsockname()[1]
        self._streams: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}

    async def start(self) -> None:
        """Listen on the same port as before. Does nothing when already listening."""
        if self._listener is not None:
            return
        # asyncio's own server loses a connection that arrives while it closes.
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen(128)
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        self.url = f"http://127.0.0.1:{self._port}/api/v1"

    async def stop(self) -> None:
        """Close all connections and refuse new ones."""
        self._running.set()
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            for writer in self._streams:
                writer.transport.abort()

    @property
    def connections(self) -> int:
        """The number of connections that are still handled."""
        return len(self._connections)

    def close(self) -> None:
        """Release the port."""
        self._reservation.close()

    def freeze(self) -> None:
        """Accept connections but send nothing on them, not even in the middle of an answer, until `resume`."""
        self._running.clear()

    def resume(self) -> None:
        """Continue where `freeze` stopped."""
        self._running.set()

    async def until_resumed(self) -> None:
        """Wait while frozen."""
        await self._running.wait()

    def disconnected(self, writer: asyncio.StreamWriter) -> bool:
        """Whether the client has closed this connection."""
        return writer.is_closing() or writer not in self._streams or self._streams[writer].at_eof()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the client is gone already
            return
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._handle(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _handle(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        await self._serve(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._streams[writer] = reader
        try:
            while self._listener is not None and await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            del self._streams[writer]
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        await self.until_resumed()
        if method == "GET":
            self.health_checks.append(path)
            await whole(writer, {"data": []}, status=self.health_check_status)
            return True
        request = ReceivedRequest(method, path, headers, body)
        self.requests.append(request)
        self.busy += 1
        try:
            return await self._answer(writer, request)
        finally:
            self.busy -= 1

    async def _answer(self, writer: asyncio.StreamWriter, request: ReceivedRequest) -> bool:
        behaviour = self.script.pop(0) if self.script else self.default
        if isinstance(behaviour, tuple):
            await refuse(writer, *behaviour)
            return True
        keep: bool = await BEHAVIOURS[behaviour](self, writer, request.json)
        return keep


Behaviour = Callable[[FakeOpenRouter, asyncio.StreamWriter, dict[str, Any]], Any]
SECRET_WORDS = "prompt-of-a-user /srv/models/x.gguf https://internal.example/key?k=sk-or-secret"


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def whole(writer: asyncio.StreamWriter, body: Any, *, status: int = 200, extra: str = "") -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        f"Server: cloudflare\r\nSet-Cookie: session=1\r\nAccess-Control-Allow-Origin: *\r\n{extra}\r\n"
    )
    await send(writer, head.encode() + data)


async def refuse(writer: asyncio.StreamWriter, status: int, retry_after: str | None = None, **error: Any) -> None:
    extra = f"Retry-After: {retry_after}\r\n" if retry_after is not None else ""
    body = {"error": {"code": status, "message": SECRET_WORDS, **error}, "user_id": "user_secret"}
    await whole(writer, body, status=status, extra=extra)


async def begin(writer: asyncio.StreamWriter) -> None:
    await send(
        writer,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
    )


async def piece(writer: asyncio.StreamWriter, data: bytes) -> None:
    await send(writer, b"%x\r\n%s\r\n" % (len(data), data))


def event(**body: Any) -> bytes:
    return b"data: " + json.dumps({"id": "gen-1", "object": "chat.completion.chunk", **body}).encode() + b"\n\n"


def delta(finish: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": finish}])


def usage() -> dict[str, Any]:
    return {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "cost": COST}


async def answer(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    text = f"{server.name}:" + "".join(WORDS)
    if not body.get("stream"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        await whole(writer, {"id": "gen-1", "provider": "P", "choices": [choice], "usage": usage()})
    else:
        await begin(writer)
        await piece(writer, delta(role="assistant", content=""))
        for word in (f"{server.name}:", *WORDS):
            await piece(writer, delta(content=word))
            await server.until_resumed()
        await piece(writer, delta("stop") + event(choices=[], usage=usage()) + b"data: [DONE]\n\n")
        await send(writer, b"0\r\n\r\n")
    server.answered += 1
    return True


async def processing(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await begin(writer)
    for _ in range(3):
        await piece(writer, b": OPENROUTER PROCESSING\n\n")
    for word in (f"{server.name}:", *WORDS):
        await piece(writer, delta(content=word))
    await piece(writer, delta("stop") + event(choices=[], usage=usage()) + b"data: [DONE]\n\n")
    await send(writer, b"0\r\n\r\n")
    return True


async def only_processing(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await begin(writer)
    while not server.disconnected(writer):
        await piece(writer, b": OPENROUTER PROCESSING\n\n")
        await asyncio.sleep(0.02)
    return False


async def error_in_200(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    error = {"code": 502, "message": SECRET_WORDS}
    if not body.get("stream"):
        await whole(writer, {"error": error})
        return True
    await begin(writer)
    await piece(writer, b": OPENROUTER PROCESSING\n\n" + event(error=error))
    await send(writer, b"0\r\n\r\n")
    return True


async def error_after_role(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    error = {"code": 502, "message": SECRET_WORDS}
    if not body.get("stream"):
        choice = {"index": 0, "message": {"content": ""}, "finish_reason": "error", "error": error}
        await whole(writer, {"choices": [choice]})
        return True
    await begin(writer)
    await piece(writer, delta(role="assistant", content=""))
    await piece(writer, event(error=error, choices=[{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]))
    await send(writer, b"0\r\n\r\n")
    return True


async def in_band(code: int, writer: asyncio.StreamWriter) -> bool:
    await begin(writer)
    await piece(writer, event(error={"code": code, "message": SECRET_WORDS}))
    await send(writer, b"0\r\n\r\n")
    return True


async def in_band_402(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    return await in_band(402, writer)


async def in_band_429(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    return await in_band(429, writer)


async def first_words(server: FakeOpenRouter, writer: asyncio.StreamWriter) -> None:
    await begin(writer)
    await piece(writer, delta(role="assistant", content="") + delta(content=f"{server.name}:"))
    await piece(writer, delta(content=WORDS[0]))


async def error_after_words(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await first_words(server, writer)
    await piece(writer, event(error={"code": 502, "message": SECRET_WORDS}, choices=[{"finish_reason": "error"}]))
    await send(writer, b"0\r\n\r\n")
    return True


async def cut_after_words(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await first_words(server, writer)
    await send(writer, b"0\r\n\r\n")
    return True


async def reset_after_words(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await first_words(server, writer)
    writer.transport.abort()
    return False


async def break_when_done(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await begin(writer)
    for word in (f"{server.name}:", *WORDS):
        await piece(writer, delta(content=word))
    await piece(writer, delta("stop") + event(choices=[], usage=usage()) + b"data: [DONE]\n\n")
    writer.close()  # without the end of the chunks
    return False


async def stall_after_words(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await first_words(server, writer)
    return await stall(server, writer, body)


async def stall(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    while not server.disconnected(writer):  # noqa: ASYNC110 - a disconnect has no event to wait for
        await asyncio.sleep(0.01)
    return False


async def reset(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    writer.transport.abort()
    return False


async def redirect(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await whole(writer, {}, status=302, extra=f"Location: {server.url}/elsewhere\r\n")
    return True


async def garbage(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await send(writer, b"<html>gateway</html>\r\n\r\n")
    return False


async def loading(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    await whole(writer, {"error": error}, status=503)
    return True


async def too_long(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    error = {"code": 400, "type": "exceed_context_size_error", "message": "the request exceeds the context size"}
    await whole(writer, {"error": error}, status=400)
    return True


async def flagged(server: FakeOpenRouter, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
    await refuse(writer, 403, metadata={"reasons": ["violence"], "flagged_input": SECRET_WORDS})
    return True


BEHAVIOURS: dict[str, Behaviour] = {
    each.__name__: each
    for each in (
        *(answer, processing, only_processing, error_in_200, error_after_role, in_band_402, in_band_429),
        *(
            error_after_words,
            cut_after_words,
            reset_after_words,
            break_when_done,
            stall_after_words,
            stall,
            reset,
            redirect,
            garbage,
        ),
        *(loading, too_long, flagged),
    )
}


@asynccontextmanager
async def start_openrouter(name: str) -> AsyncIterator[FakeOpenRouter]:
    """Run a server until the context ends."""
    server = FakeOpenRouter(name)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        for _ in range(500):
            if not server.open and not server.busy and not server.connections:
                break
            await asyncio.sleep(0.01)
        server.close()
