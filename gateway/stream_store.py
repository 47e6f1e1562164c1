"""Streams that outlive their client's connection: their last bytes, by client and conversation, until a while after their
end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import anyio
import msgspec

from hostler.adapters.stored_response import StreamInfo
from hostler.gateway.asgi import Message, Send
from hostler.gateway.context import Client

#: The header that names a stream's conversation, and how long a name may be.
CONVERSATION = "x-conversation-id"
MAX_NAME = 256

#: Bytes that a follower gets in one go: what it has not read yet is kept only once, for all of them.
PIECE = 64 * 1024

_MAX_STREAMS = 1024
_ERRORS = 400


class Timer(Protocol):
    def cancel(self) -> None: ...


#: Calls a function after a time in seconds.
CallLater = Callable[[float, Callable[[], object]], Timer]


class StreamLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`max_stream` and `max_size` are bytes, of one stream and of all. `keep_s` is how long a stream is kept after its end,
    `detached_s` how long it may go on without any client."""

    max_stream: int
    max_size: int
    keep_s: float
    detached_s: float


class OffsetLost(Exception):
    """The bytes at this offset are not kept any more."""


class ResumableStream:
    """One stream: passes its messages on to its client while that is connected, and keeps them for others.

    `cancel` stops its request. `dropped` is how many bytes at its beginning are not kept any more.
    """

    def __init__(self, store: StreamStore, key: tuple[str, str], send: Send, *, started_at: float) -> None:
        self._store = store
        self._key = key
        self._send: Send | None = send
        self._data = bytearray()
        self._changed = anyio.Event()
        self._followers = 0
        self._timer: Timer | None = None
        self.started_at = started_at
        self.completed_at = 0.0
        self.dropped = 0
        self.media_type = ""
        self.cancel: Callable[[], None] = _nothing

    @property
    def key(self) -> tuple[str, str]:
        """The client and the conversation."""
        return self._key

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return len(self._data)

    @property
    def info(self) -> StreamInfo:
        return StreamInfo(
            conversation=self._key[1],
            is_done=self.completed_at > 0,
            total_bytes=self.dropped + len(self._data),
            started_at=int(self.started_at),
            completed_at=int(self.completed_at),
        )

    @property
    def is_unwatched(self) -> bool:
        """Whether it goes on, and has no client."""
        return self._send is None and not self._followers and not self.completed_at

    async def send(self, message: Message) -> None:
        """Keep a message of the answer, and pass it on to the client unless that has disconnected."""
        if message["type"] == "http.response.start":
            if message["status"] >= _ERRORS:
                self._store.forget(self)
            names = dict(message.get("headers", ()))
            self.media_type = names.get(b"content-type", b"").decode("latin-1")
        elif data := message.get("body", b""):
            self._data += data
            self._store.on_growth(self, len(data))
            self._notify()
        if self._send is not None:
            try:
                await self._send(message)
            except OSError:  # as other servers than Hostler's say that the client has disconnected
                self.detach()

    def detach(self) -> bool:
        """The client has disconnected; returns whether the stream goes on without it."""
        if self.completed_at or self._store.stopping or not self._store.has(self):
            return False
        self._send = None
        self._watch()
        return True

    def finish(self) -> None:
        """The answer has ended, in whatever way. Neither its request nor its client's connection is kept."""
        if not self.completed_at:
            self._stop_timer()
            self._send, self.cancel = None, _nothing
            self._timer = self._store.on_end(self)
            self._notify()

    async def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        """The bytes from an offset on, until the stream ends. Raises `OffsetLost`."""
        self._followers += 1
        if not self.completed_at:
            self._stop_timer()
        try:
            while True:
                if start < self.dropped:
                    raise OffsetLost
                changed = self._changed
                data = bytes(self._data[start - self.dropped : start - self.dropped + PIECE])
                if data:
                    start += len(data)
                    yield data
                elif self.completed_at or not self._store.has(self):
                    return
                else:
                    await changed.wait()
        finally:
            self._followers -= 1
            self._watch()

    def drop(self, count: int) -> None:
        """Forget the first bytes that are kept."""
        del self._data[:count]
        self.dropped += count

    def forgotten(self) -> None:
        """The store has forgotten the stream, which cannot be found any more."""
        self._stop_timer()
        self._notify()

    def _watch(self) -> None:
        """Stop the request after a while if it has no client any more, and at once while the gateway stops."""
        if self._store.stopping and self.is_unwatched:
            self.cancel()
        elif self._timer is None and self.is_unwatched:
            self._timer = self._store.later(self._store.limits.detached_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _notify(self) -> None:
        if self._followers:
            changed, self._changed = self._changed, anyio.Event()
            changed.set()


class StreamStore:
    """The streams of all clients, one for each conversation, the oldest first. `wall` returns seconds since the epoch.

    Beyond the limits, the bytes at the beginning of a stream are dropped, and streams that have ended.
    """

    def __init__(self, limits: StreamLimits, *, wall: Callable[[], float], later: CallLater | None = None) -> None:
        self.limits = limits
        self._wall = wall
        self._later = later
        self.stopping = False
        self._streams: dict[tuple[str, str], ResumableStream] = {}
        self._size = 0

    def open(self, client: Client, conversation: str, send: Send) -> ResumableStream | None:
        """A new stream, which takes the place of an earlier one of its conversation; `None` if there are too many."""
        key = client.owner, conversation
        before = self._streams.get(key)
        if before is not None:
            self.forget(before)
            before.cancel()
        if len(self._streams) >= _MAX_STREAMS and not self._forget_ended():
            return None
        stream = self._streams[key] = ResumableStream(self, key, send, started_at=self._wall())
        return stream

    def find(self, client: Client, conversation: str) -> ResumableStream | None:
        return self._streams.get((client.owner, conversation))

    def matching(self, client: Client, conversations: tuple[str, ...]) -> list[StreamInfo]:
        """The streams of these conversations, and of their variants `CONVERSATION::MODEL`."""
        owner, wanted = client.owner, frozenset(conversations)
        return [
            stream.info
            for (whose, name), stream in self._streams.items()
            if whose == owner and (name in wanted or name.partition("::")[0] in wanted)
        ]

    def stop(self) -> None:
        """The gateway stops: streams end with their clients, since no other can come back to them."""
        self.stopping = True
        for stream in list(self._streams.values()):
            if stream.is_unwatched:
                stream.cancel()

    def has(self, stream: ResumableStream) -> bool:
        """Whether the stream can still be found."""
        return self._streams.get(stream.key) is stream

    def forget(self, stream: ResumableStream) -> None:
        """Drop a stream; its followers reach its end."""
        if self.has(stream):
            del self._streams[stream.key]
            self._size -= stream.size
            stream.forgotten()

    def on_growth(self, stream: ResumableStream, count: int) -> None:
        """Keep the streams within their limits."""
        if not self.has(stream):
            stream.drop(stream.size)
            return
        self._size += count
        self._drop(stream, stream.size - self.limits.max_stream)
        while self._size > self.limits.max_size and self._forget_ended():
            pass
        self._drop(stream, min(self._size - self.limits.max_size, stream.size))

    def on_end(self, stream: ResumableStream) -> Timer | None:
        """Keep a stream that has ended for a while. The timer refers to it, so it has to end with it."""
        stream.completed_at = self._wall()
        return self.later(self.limits.keep_s, lambda: self.forget(stream)) if self.has(stream) else None

    def later(self, seconds: float, call: Callable[[], object]) -> Timer:
        return (self._later or asyncio.get_running_loop().call_later)(seconds, call)

    def _drop(self, stream: ResumableStream, count: int) -> None:
        if count > 0:
            stream.drop(count)
            self._size -= count

    def _forget_ended(self) -> bool:
        """Forget the oldest stream that has ended; returns whether there was one."""
        ended = next((stream for stream in self._streams.values() if stream.completed_at), None)
        if ended is not None:
            self.forget(ended)
        return ended is not None


def _nothing() -> None:
    """The request of a stream that has ended need not be stopped."""
