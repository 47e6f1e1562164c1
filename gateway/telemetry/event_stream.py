"""Frames of an event stream for many readers: each is kept once, and every reader has a place in one bounded ring."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import islice

import msgspec

from hostler.adapters import sse

_encode = msgspec.json.Encoder().encode


def frame(kind: str, value: object) -> bytes:
    """One event as it goes over the wire. JSON holds no line ends, so one data line is enough."""
    return sse.event(_encode(value), kind)


class EventStream:
    """Frames for any number of readers.

    Readers wake together, at most every `pace_s`, and get what came since in one piece, which is put together once for
    all of them. A reader that does not come back costs nothing: what it missed is gone, and it is told so. Belongs to
    one event loop.
    """

    def __init__(self, *, frames: int = 1000, size: int = 4 * 1024 * 1024, pace_s: float = 0.1) -> None:
        self._frames: deque[bytes] = deque()
        self._most_frames = frames
        self._most_bytes = size
        self._pace_s = pace_s
        self._bytes = 0
        self._count = 0
        self._shown = 0
        self._shown_at = 0.0
        self._piece: tuple[int, int, bytes] = (0, 0, b"")
        self._timer: asyncio.TimerHandle | None = None
        self._fresh = asyncio.Event()
        self._watched = asyncio.Event()
        self._readers = 0
        self._closed = False

    @property
    def watched(self) -> bool:
        """Whether anybody reads: what nobody reads need not be encoded."""
        return self._readers > 0

    async def until_watched(self) -> None:
        """Wait for a reader."""
        await self._watched.wait()

    def add(self, data: bytes) -> None:
        """Another frame. Never waits."""
        if not self._readers:
            return
        self._frames.append(data)
        self._bytes += len(data)
        self._count += 1
        while len(self._frames) > self._most_frames or (self._bytes > self._most_bytes and len(self._frames) > 1):
            self._bytes -= len(self._frames.popleft())
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._shown_at + self._pace_s, self._show)

    def close(self) -> None:
        """Every reader sees the end."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fresh.set()

    @contextmanager
    def reader(self) -> Iterator[AsyncIterator[bytes | None]]:
        """What is added from now on, in pieces; `None` where something was missed."""
        self._readers += 1
        self._watched.set()
        try:
            yield self._pieces(self._count)
        finally:
            self._readers -= 1
            if not self._readers:
                self._watched.clear()
                self._frames.clear()
                self._bytes = 0

    async def _pieces(self, at: int) -> AsyncIterator[bytes | None]:
        while not self._closed:
            if at >= self._shown:
                await self._fresh.wait()
            elif at < self._count - len(self._frames):
                at = self._count
                yield None
            else:
                at, since = self._shown, at
                yield self._joined(since)

    def _joined(self, since: int) -> bytes:
        if self._piece[:2] != (since, self._shown):
            first = since - (self._count - len(self._frames))
            piece = b"".join(islice(self._frames, first, first + self._shown - since))
            self._piece = (since, self._shown, piece)
        return self._piece[2]

    def _show(self) -> None:
        self._timer = None
        self._shown, self._shown_at = self._count, asyncio.get_running_loop().time()
        fresh, self._fresh = self._fresh, asyncio.Event()
        fresh.set()
