"""One end of the connection between the main process and a worker: frames in both directions, and calls with answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import anyio
import msgspec

from hostler.gateway.workers.frames import FrameStream, encode_frame

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Unsent bytes above which what may be lost is not sent any more: log entries and transcripts.
CROWDED_BYTES = 8 * 1024 * 1024


class ChannelClosed(Exception):
    """The other process has ended."""


class Channel(asyncio.Protocol, Generic[_T]):
    """`on_frame` gets each frame but the answers to calls; `closed` is set once the other process has ended."""

    def __init__(self, stream: FrameStream[_T], on_frame: Callable[[_T], None]) -> None:
        self._stream = stream
        self._on_frame = on_frame
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outbox: list[bytes] = []
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._on_late: dict[int, Callable[[Any], None]] = {}
        self.closed = anyio.Event()

    async def connect(self, sock: socket.socket) -> None:
        """Use this socket. Frames may arrive before this returns."""
        sock.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    @property
    def crowded(self) -> bool:
        """Whether the other process reads much more slowly than this one writes."""
        return self._transport is None or self._transport.get_write_buffer_size() > CROWDED_BYTES

    def send(self, frame: msgspec.Struct) -> None:
        """Send a frame with all others of this turn of the loop, or once there is a connection. Nothing is sent once the
        other process has ended."""
        if not self._outbox:
            self._loop.call_soon(self.flush)
        self._outbox.append(encode_frame(frame))

    async def call(self, make: Callable[[int], msgspec.Struct], on_late: Callable[[Any], None] | None = None) -> Any:
        """Send the frame that `make` makes of a number, and wait for the answer with that number.

        `on_late` gets an answer that arrives after the call was cancelled. Raises `ChannelClosed`.
        """
        number = next(self._numbers)
        if self.closed.is_set():
            raise ChannelClosed
        answer = self._calls[number] = self._loop.create_future()
        try:
            self.send(make(number))
            return await answer
        except asyncio.CancelledError:
            if on_late is not None:
                if answer.done() and not answer.cancelled() and answer.exception() is None:
                    on_late(answer.result())
                else:
                    self._on_late[number] = on_late
            raise
        finally:
            self._calls.pop(number, None)

    def answered(self, number: int, value: Any) -> None:
        """The answer to a call has arrived."""
        if (answer := self._calls.get(number)) is not None:
            if not answer.done():
                answer.set_result(value)
        elif (on_late := self._on_late.pop(number, None)) is not None:
            on_late(value)

    def flush(self) -> None:
        """Write what was sent so far."""
        if self._transport is None and not self.closed.is_set():
            return  # `connection_made` does
        data, self._outbox = b"".join(self._outbox), []
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection once everything has been written."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            frames = list(self._stream.feed(data))
        except msgspec.MsgspecError:
            logger.exception("a worker and its main process do not understand each other")
            if self._transport is not None:
                self._transport.abort()
            return
        for frame in frames:
            try:
                self._on_frame(frame)
            except Exception:
                logger.exception("a frame (%s) could not be handled", type(frame).__name__)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.closed.set()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ChannelClosed())
        self._calls.clear()
