"""The latest lines of the gateway's log, and new ones as they are written. Logging never waits for a reader."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import msgspec

from hostler.gateway.telemetry.access_log import AccessLogRecord

#: Lines kept.
CAPACITY = 1000
_MAX_LINE = 2000


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a log; `at` in seconds since the epoch. Engines' lines have only `text`."""

    text: str
    at: float | None = None
    level: str = ""
    logger: str = ""


class LogBuffer(logging.Handler):
    """A logging handler that keeps the last `CAPACITY` lines. Thread-safe within `installed`."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque(maxlen=CAPACITY)
        self._followers: set[_Follower] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the records of all loggers while the context lasts."""
        self._loop = asyncio.get_running_loop()
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)
            self._loop = None

    def tail(self) -> list[LogLine]:
        """The kept lines, the oldest first."""
        return list(self._lines)

    @contextmanager
    def follow(self) -> Iterator[AsyncIterator[LogLine]]:
        """New lines, without end. A slow follower loses the oldest ones."""
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
        if isinstance(record, AccessLogRecord):
            lines = [
                LogLine(text=text[:_MAX_LINE], at=at, level=level, logger=record.name)
                for at, text in record.lines[-CAPACITY:]
            ]
        else:
            try:
                text = self.format(record)[:_MAX_LINE]
            except Exception:
                text = f"[a message of {record.name} could not be formatted]"
            lines = [LogLine(text=text, at=record.created, level=level, logger=record.name)]
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            self._append(lines)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._append, lines)

    def _append(self, lines: list[LogLine]) -> None:
        self._lines += lines
        for follower in self._followers:
            for line in lines:
                follower.put(line)


class _Follower:
    """A reader with a bounded buffer of its own."""

    def __init__(self) -> None:
        self._buffer: deque[LogLine] = deque(maxlen=CAPACITY)
        self._available = asyncio.Event()

    def put(self, line: LogLine) -> None:
        self._buffer.append(line)
        self._available.set()

    def __aiter__(self) -> _Follower:
        return self

    async def __anext__(self) -> LogLine:
        while not self._buffer:
            self._available.clear()
            await self._available.wait()
        return self._buffer.popleft()
