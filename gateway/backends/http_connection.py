"""One socket to a backend: one request and response at a time, with backpressure both ways and one timer.

It knows nothing of pools, retries or endpoints. Errors of the loop and of the parser are raised as `BackendError`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import cast

from hostler.adapters.canonical import ResponseHead
from hostler.adapters.errors import BackendBroken, BackendError, BackendTimeout, BackendUnavailable
from hostler.adapters.redaction import Redactor
from hostler.gateway.backends.http_response import MalformedResponse, ResponseReader, ResponseTemplate

HIGH_WATER = 256 * 1024  # unread bytes of a response above which reading is paused
COPY_BELOW = 64 * 1024  # bodies up to this size are sent in one write with their head
WRITE_STEP = 256 * 1024

_TCP_CLOSE = 7
_TCP_INFO_UNACKED = struct.Struct("=I")


class BackendConnection(asyncio.Protocol):
    """A connection. `start_request`, `send_small` or `send_large`, `wait_head`, `read` until empty, and again if
    `reusable`.

    Used by one task at a time. `on_lost` is called once, when the socket is closed. `far`: the peer may be on another
    machine, which can fall asleep.
    """

    __slots__ = (
        "_buffered", "_deadline", "_error", "_far", "_loop", "_on_lost", "_paused", "_redactor", "_seen", "_timer",
        "_timer_at", "_transport", "_waiter", "_write_paused", "backend", "idle_until", "lost", "reader", "served",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backend: str,
        on_lost: Callable[[BackendConnection], None],
        *,
        far: bool = True,
    ) -> None:
        self._loop = loop
        self._far = far
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0
        self._error: BackendError | None = None
        self._buffered = 0
        self._redactor: Redactor | None = None
        self._seen = ResponseTemplate()
        self._paused = False
        self._write_paused = False
        self.backend = backend
        self.reader: ResponseReader | None = None
        self.lost = False
        self.served = 0
        self.idle_until = 0.0

    # One request.

    def start_request(self, method: str, backend: str, redactor: Redactor | None = None) -> ResponseReader:
        """Prepare for the next request. Only on a new connection, or on one that was `reusable`."""
        self.backend = backend
        self._redactor = redactor
        self.reader = reader = ResponseReader(method, self._seen)
        self.served += 1
        self._buffered = 0
        return reader

    def send_small(self, head: bytes, body: bytes) -> bool:
        """Send a request in one write, as most are; returns false if it is too large for that."""
        if len(body) > COPY_BELOW:
            return False
        self._open().write(head + body if body else head)
        return True

    async def send_large(self, head: bytes, body: bytes, stall_s: float) -> None:
        """Send a large request. Returns early if the response arrives before all is sent; the connection is not kept
        then."""
        transport, reader = self._open(), self.reader
        assert reader is not None
        transport.write(head)
        view = memoryview(body)
        for start in range(0, len(view), WRITE_STEP):
            while self._write_paused:
                if not self.alive or reader.head is not None:
                    reader.keep_s = 0.0
                    return
                await self._wait(stall_s)
            transport.write(view[start : start + WRITE_STEP])

    def _open(self) -> asyncio.Transport:
        if self._error is not None:
            raise self._error
        if self._transport is None:
            raise BackendUnavailable(
                f'backend "{self.backend}" closed the connection immediately', backend=self.backend
            )
        return self._transport

    async def wait_head(self, first_byte_s: float) -> ResponseHead:
        """Wait for the response's head."""
        reader = self.reader
        assert reader is not None
        while reader.head is None:
            if self._error is not None:
                raise self._error
            await self._wait(first_byte_s)
        return reader.head

    async def next(self, silence_s: float) -> bytes:
        """The unread part of the body, after waiting for it if need be. Raises `StopAsyncIteration` once it is complete."""
        reader = self.reader
        assert reader is not None
        parts, redactor = reader.parts, self._redactor
        while True:
            while not parts:
                if reader.complete:
                    if redactor is not None and (held := redactor.rest()):
                        return held
                    raise StopAsyncIteration
                if self._error is not None:
                    raise self._error
                await self._wait(silence_s)
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._buffered = 0
            if self._paused:
                self._paused = False
                if not self.lost and self._transport is not None:
                    self._transport.resume_reading()
            if redactor is None or (data := redactor.feed(data)):
                return data

    @property
    def reusable(self) -> bool:
        """Whether the response is complete and the connection can carry another request."""
        reader = self.reader
        return (
            reader is not None
            and reader.complete
            and reader.keep_s > 0
            and self.alive
            and not (self._paused or self._write_paused)
            and self._transport is not None
            and self._transport.get_write_buffer_size() == 0
        )

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as is known."""
        return self._error is None and self._transport is not None and not self._transport.is_closing()

    def set_idle(self) -> None:
        """No request is under way: anything that arrives now closes the connection."""
        self.reader = None

    def abort(self) -> None:
        """Close the connection at once; a pending read raises `BackendBroken`."""
        self._fail(BackendBroken(f'the connection to backend "{self.backend}" was closed', backend=self.backend))

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._far and sys.platform == "linux" and (sock := transport.get_extra_info("socket")) is not None:
            # A machine that falls asleep closes nothing: probe it after 10 s of silence, give up after 25 s in all.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        if self._error is not None:  # aborted while it was being made
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        if reader is None:
            self.abort()
            return
        if self._error is not None:
            return
        try:
            reader.feed(data)
        except MalformedResponse as reason:
            self._fail(self._broken(str(reason)))
            return
        if reader.parts:
            self._buffered += len(data)
            if self._buffered > HIGH_WATER and not self._paused and not reader.complete:
                self._paused = True
                assert self._transport is not None
                self._transport.pause_reading()
        elif reader.head is None:
            return
        waiter = self._waiter  # as `_wake`, which would take another frame for each piece of a stream
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def eof_received(self) -> None:
        reader = self.reader
        if reader is not None and reader.until_close and self._error is None:
            reader.eof()
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reader = self.reader
        if reader is not None:
            if self._error is None and not reader.complete:
                self._error = self._lost_error(reader, exc)
            reader.close()
        self._transport = None
        self._wake()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake()

    # Waiting, with one timer that is rescheduled only when it fires.

    def _wait(self, seconds: float) -> asyncio.Future[None]:
        """Until something changes; an error is stored in `_error`."""
        loop = self._loop
        self._waiter = waiter = loop.create_future()
        self._deadline = deadline = loop.time() + seconds
        if self._timer is None or self._timer_at > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = loop.call_at(deadline, self._on_timer)
        return waiter

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        # Loops round their clock to milliseconds: a timer may be a little early.
        if self._loop.time() < self._deadline - 0.002:
            self._timer_at = self._deadline
            self._timer = self._loop.call_at(self._deadline, self._on_timer)
            return
        problem = (
            "stopped answering"
            if self.reader is not None and self.reader.head is not None
            else "did not answer in time"
        )
        self._fail(BackendTimeout(f'backend "{self.backend}" {problem}', backend=self.backend))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Errors.

    def _fail(self, error: BackendError) -> None:
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _broken(self, reason: str) -> BackendBroken:
        return BackendBroken(f'backend "{self.backend}" {reason}', backend=self.backend)

    def _lost_error(self, reader: ResponseReader, exc: Exception | None) -> BackendError:
        if not reader.received:
            if self._never_read(exc):
                return BackendUnavailable(
                    f'backend "{self.backend}" closed the connection before it read the request', backend=self.backend
                )
            return self._broken("closed the connection without an answer")
        return self._broken(
            "ended its answer in the middle" if reader.head is not None else "ended its answer in the head"
        )

    def _never_read(self, exc: Exception | None) -> bool:
        """Whether the peer closed its socket before its program had read the whole request.

        A program that has read everything ends with FIN after everything is acknowledged. A reset means that some of
        our bytes were never read: they came after the close, or were unread at the close. A FIN alone leaves that open,
        but the kernel knows: the FIN acknowledges all that had arrived by then.
        """
        if isinstance(exc, ConnectionResetError | BrokenPipeError):
            return True
        if exc is not None and getattr(exc, "errno", None) in (errno.ECONNABORTED, errno.ENOTCONN):
            return True
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if exc is not None or sock is None or sys.platform != "linux":
            return False
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        except (OSError, TypeError):
            return False
        return bool(info[0] == _TCP_CLOSE or _TCP_INFO_UNACKED.unpack_from(info, 24)[0] > 0)
