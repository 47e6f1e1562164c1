"""An event stream with many readers: each frame is kept once, in a ring that all readers share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import islice

import msgspec

from hostler.adapters import sse

_encode = msgspec.json.Encoder().encode


def frame(name: str, value: object) -> bytes:
    """A server-sent event with `value` as JSON."""
    return sse.event(_encode(value), name)


class EventStream:
    """Frames for any number of readers, within one event loop.

    Readers wake together, at most every `pace_s`, and get what was added since as one chunk, which is joined once for
    all of them. A reader that falls behind the ring gets `None` instead of what it missed. `readers` is their number:
    without any, nothing needs to be encoded.
    """

    def __init__(self, *, max_frames: int = 1000, max_bytes: int = 4 * 1024 * 1024, pace_s: float = 0.1) -> None:
        self._frames: deque[bytes] = deque()
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._pace_s = pace_s
        self._bytes = 0
        self._count = 0
        self._published = 0
        self._published_at = 0.0
        self._chunk: tuple[int, int, bytes] = (0, 0, b"")
        self._timer: asyncio.TimerHandle | None = None
        self._available = asyncio.Event()
        self._has_readers = asyncio.Event()
        self.readers = 0
        self._closed = False

    async def wait_for_reader(self) -> None:
        await self._has_readers.wait()

    def add(self, data: bytes) -> None:
        """Never waits; dropped without readers."""
        if not self.readers:
            return
        self._frames.append(data)
        self._bytes += len(data)
        self._count += 1
        while len(self._frames) > self._max_frames or (self._bytes > self._max_bytes and len(self._frames) > 1):
            self._bytes -= len(self._frames.popleft())
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._published_at + self._pace_s, self._publish)

    def close(self) -> None:
        """End the stream for all readers."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._available.set()

    @contextmanager
    def reader(self) -> Iterator[AsyncIterator[bytes | None]]:
        """Yields the frames added from now on, in chunks; `None` where frames were missed."""
        self.readers += 1
        self._has_readers.set()
        try:
            yield self._chunks(self._count)
        finally:
            self.readers -= 1
            if not self.readers:
                self._has_readers.clear()
                self._frames.clear()
                self._bytes = 0

    async def _chunks(self, at: int) -> AsyncIterator[bytes | None]:
        while not self._closed:
            if at >= self._published:
                await self._available.wait()
            elif at < self._count - len(self._frames):
                at = self._count
                yield None
            else:
                at, since = self._published, at
                yield self._joined(since)

    def _joined(self, since: int) -> bytes:
        if self._chunk[:2] != (since, self._published):
            first = since - (self._count - len(self._frames))
            chunk = b"".join(islice(self._frames, first, first + self._published - since))
            self._chunk = (since, self._published, chunk)
        return self._chunk[2]

    def _publish(self) -> None:
        self._timer = None
        self._published, self._published_at = self._count, asyncio.get_running_loop().time()
        available, self._available = self._available, asyncio.Event()
        available.set()
