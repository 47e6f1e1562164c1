"""The gateway's own log as lines that can be followed: the last ones are kept, and nobody who logs ever waits."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import msgspec

from hostler.gateway.telemetry.access_log import Lines

#: As many lines are kept.
KEPT = 1000
_LONGEST = 2000


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a log; `at` in seconds since the epoch, `level` and `logger` where they are known."""

    text: str
    at: float | None = None
    level: str = ""
    logger: str = ""


class LogBuffer(logging.Handler):
    """A handler for Python's logging. Lines of other threads are handed to the loop that it is opened in."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=KEPT)
        self._followers: set[_Follower] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Listen to every logger as long as the context lasts."""
        self._loop = asyncio.get_running_loop()
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)
            self._loop = None

    def tail(self) -> list[LogLine]:
        """What is kept, the oldest first."""
        return list(self._lines)

    @contextmanager
    def followed(self) -> Iterator[AsyncIterator[LogLine]]:
        """Lines from now on, without end. A slow follower loses the oldest ones."""
        follower = _Follower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        loop = self._loop
        if loop is None:
            return
        level = record.levelname.lower()
        if isinstance(record, Lines):
            lines = [
                LogLine(text=text[:_LONGEST], at=at, level=level, logger=record.name)
                for at, text in record.lines[-KEPT:]
            ]
        else:
            try:
                text = self.format(record)[:_LONGEST]
            except Exception:
                text = f"a message of {record.name} could not be written"
            lines = [LogLine(text=text, at=record.created, level=level, logger=record.name)]
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            self._keep(lines)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._keep, lines)

    def _keep(self, lines: list[LogLine]) -> None:
        self._lines += lines
        for follower in self._followers:
            for line in lines:
                follower.offer(line)


class _Follower:
    """One reader, with a bounded buffer of its own."""

    def __init__(self) -> None:
        self._waiting: deque[LogLine] = deque(maxlen=KEPT)
        self._more = asyncio.Event()

    def offer(self, line: LogLine) -> None:
        self._waiting.append(line)
        self._more.set()

    def __aiter__(self) -> _Follower:
        return self

    async def __anext__(self) -> LogLine:
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        return self._waiting.popleft()
