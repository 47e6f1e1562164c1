"""One request and its answer on a connection: ASGI's `scope`, `receive` and `send`, and what they are on the wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

from hostler.gateway.asgi import ASGIApp, Message, Scope

logger = logging.getLogger(__name__)

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus if status >= 200
}
_NO_BODY = frozenset({204, 304})
_NO_SCOPE: Scope = {}


class Connection(Protocol):
    """What a call needs of the connection that it came on. `transport` is `None` once the socket is gone."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport | None
    write_paused: bool
    unread_bytes: int

    @property
    def default_lines(self) -> list[bytes]:
        """What every answer's head says."""

    async def writable(self) -> None:
        """Until the client has taken most of what was written, or has left."""

    def pause_reading(self) -> None:
        """Read nothing for now."""

    def resume_reading(self) -> None:
        """Read on."""

    def close(self) -> None:
        """Close once what was written is taken."""

    def answered(self, call: Call) -> None:
        """The answer is complete, or will never be."""

    def ended(self, call: Call) -> None:
        """Nobody works on it any more."""


class Call:
    """One request and its answer, as ASGI sees them (`scope`, `receive`, `send`) and as a `Line`."""

    __slots__ = (
        "_bodiless", "_chunked", "_connection", "_expects", "_head", "_leaving", "_more", "_old", "_parts", "_remaining", "_scope",
        "_size", "_told", "_waiter", "complete", "gone", "keep", "started", "task",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, scope: Scope, *, keep: bool, expects: bool, body: bytes | None = None
    ) -> None:
        """With `body` the request is complete; else pieces of it follow (`take`)."""
        self._connection = connection
        self._scope = scope
        self._old = scope["http_version"] == "1.0"
        self._expects = expects
        self._parts: list[bytes] = [] if body is None else [body]
        self._size = 0
        self._more = body is None
        self._told = False
        self._waiter: asyncio.Future[None] | None = None
        self._leaving: Callable[[], None] | None = None
        self._head: bytes | None = None
        self._bodiless = scope["method"] == "HEAD"
        self._chunked = False
        self._remaining: int | None = None
        self.task: asyncio.Task[None]
        self.keep = keep
        self.started = False
        self.complete = False
        self.gone = False

    @property
    def scope(self) -> Scope:
        """ASGI's scope, until the application has it."""
        return self._scope

    @property
    def remarkable(self) -> bool:
        """Whether a request like this one may follow on its connection."""
        return self.keep and not self._expects

    # The request's side.

    def take(self, body: bytes) -> None:
        """A piece of the body has come."""
        self._parts.append(body)
        self._size += len(body)
        if self._size > self._connection.unread_bytes:
            self._connection.pause_reading()
        self._wake()

    def take_end(self) -> None:
        """The request is complete."""
        self._more = False
        self._wake()

    def lose(self) -> None:
        """The client has left."""
        if self.gone:
            return
        self.gone = True
        self._wake()
        if self._leaving is not None:
            self._leaving()

    def whole_body(self) -> bytes | None:
        """See `Line.whole_body`."""
        if self._more or self.gone:
            return None
        self._told = True
        return self._taken()

    def _taken(self) -> bytes:
        parts, self._parts, self._size = self._parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def on_leaving(self, callback: Callable[[], None] | None) -> None:
        """See `Line.on_leaving`."""
        self._leaving = callback
        if callback is not None and self.gone:
            callback()

    @property
    def paused(self) -> bool:
        """See `Line.paused`."""
        return self._connection.write_paused

    async def writable(self) -> None:
        """See `Line.writable`."""
        await self._connection.writable()

    async def receive(self) -> Message:
        """ASGI's `receive`. Only one task may wait in it."""
        while not (self.gone or self.complete):
            if self._parts or not (self._more or self._told):
                self._told = not self._more
                body = self._taken()
                self._connection.resume_reading()
                return {"type": "http.request", "body": body, "more_body": self._more}
            await self._wait()
        return {"type": "http.disconnect"}

    # The answer's side.

    async def send(self, message: Message) -> None:
        """ASGI's `send`. The head waits for the first piece of the body, at most until the loop's next turn."""
        connection = self._connection
        if connection.write_paused:
            await connection.writable()
        if self.gone or connection.transport is None:
            return
        if message["type"] == "http.response.start":
            lines: list[bytes] = []
            length: int | None = None
            closes = False
            for name, value in message.get("headers", ()):
                if name == b"content-length":
                    length = int(value)
                elif name == b"connection":
                    closes = b"close" in value.lower()
                else:
                    lines.append(b"%b: %b" % (name, value))
            self.begin(message["status"], lines, length=length, closes=closes)
            connection.loop.call_soon(self._flush)
        else:
            self.put(message.get("body", b""), message.get("more_body", False))

    def begin(self, status: int, lines: Sequence[bytes], *, length: int | None, closes: bool = False) -> None:
        """See `Line.begin`."""
        if self.started:
            raise RuntimeError("an answer was begun twice")
        whole = [STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, *self._connection.default_lines, *lines]
        keep = self.keep and not closes
        bodiless = self._bodiless or status in _NO_BODY
        chunked = length is None and not self._old and not bodiless
        if not keep:
            whole.append(b"connection: close")
        if length is not None:
            whole.append(b"content-length: %d" % length)
        elif chunked:
            whole.append(b"transfer-encoding: chunked")
        head = b"\r\n".join(whole)
        if head.count(b"\n") != len(whole) - 1 or head.count(b"\r") != len(whole) - 1 or b"\0" in head:
            raise RuntimeError("a header of the answer holds a line break")
        self.started = True
        self.keep, self._bodiless, self._chunked = keep, bodiless, chunked
        self._remaining = None if status in _NO_BODY else length
        self._head = head + b"\r\n\r\n"

    def put(self, body: bytes, more: bool) -> None:
        """See `Line.put`."""
        transport = self._connection.transport
        if self.gone or transport is None:
            return
        if not self.started or self.complete:
            raise RuntimeError("a body outside of an answer")
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        elif self._bodiless:
            data = b""
        else:
            data = body
            if self._remaining is not None:
                self._remaining -= len(body)
                if self._remaining < 0 or (self._remaining and not more):
                    raise RuntimeError("an answer of another length than its Content-Length")
        head, self._head = self._head, None
        if head is not None:
            data = head + data
        if data:
            transport.write(data)
        if not more:
            self.complete = True
            self._wake()
            self._connection.answered(self)

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer. Whatever it does, the connection is in a state that the client understands."""
        # The scope refers to this object: held on to, each request would be left to the garbage collector.
        scope, self._scope = self._scope, _NO_SCOPE
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._break_off()
            raise
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"][:200])
        finally:
            self._connection.ended(self)
        if self.complete:
            return
        if self.gone:
            self._connection.answered(self)
        elif self.started:
            # Without its end, so that nobody takes the part for the whole.
            self._break_off()
        else:
            self.keep = False
            self.begin(500, [b"content-type: text/plain; charset=utf-8"], length=21)
            self.put(b"Internal Server Error", False)

    def _flush(self) -> None:
        head, self._head = self._head, None
        transport = self._connection.transport
        if head is not None and transport is not None:
            transport.write(head)

    def _break_off(self) -> None:
        transport = self._connection.transport
        self.keep = False
        if transport is not None and not self.complete:
            self._flush()
            if self._remaining is None and not self._chunked:
                transport.abort()  # the end of the connection would be the end of the answer
            else:
                self._connection.close()

    async def _wait(self) -> None:
        if self._expects and not self.started:
            self._expects = False
            transport = self._connection.transport
            if transport is not None and self._more:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
