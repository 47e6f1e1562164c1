"""The last log lines of an engine, in a bounded buffer that can be followed. Never blocks the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

#: Longer lines are split.
MAX_LINE: Final = 4096

#: Lines buffered for one follower; a slower one loses the oldest.
FOLLOWER_LINES: Final = 500


class EngineLog:
    """The last `size` lines of one model's engines, over restarts. Strings given to `redact` never show up."""

    def __init__(self, size: int = 2000) -> None:
        self._lines: deque[str] = deque(maxlen=max(1, size))
        self._followers: set[LogFollower] = set()
        self._secrets: tuple[str, ...] = ()
        self._count = 0

    def redact(self, secret: str) -> None:
        """Replace `secret` in all lines from now on. The last four secrets are remembered."""
        if secret:
            self._secrets = (*self._secrets[-3:], secret)

    def add(self, line: str) -> None:
        """Append one line and hand it to the followers."""
        for secret in self._secrets:
            line = line.replace(secret, "[key]")
        self._lines.append(line)
        self._count += 1
        for follower in self._followers:
            follower.offer(line)

    @property
    def count(self) -> int:
        """How many lines were ever added: a mark for `since`."""
        return self._count

    def since(self, mark: int) -> list[str]:
        """The lines added after `count` was `mark`, as far as they are still buffered."""
        fresh = self._count - mark
        return list(self._lines)[-fresh:] if fresh > 0 else []

    def tail(self, lines: int | None = None) -> list[str]:
        """The last `lines` lines, oldest first; all buffered ones if `None`."""
        held = list(self._lines)
        return held if lines is None else held[len(held) - min(lines, len(held)) :]

    @contextmanager
    def follow(self) -> Iterator[AsyncIterator[str]]:
        """Lines from now on, without end. A follower that is too slow gets a line with the number that it missed."""
        follower = LogFollower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)


class LogFollower:
    """One reader of a log, with a bounded buffer of its own."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._missed = 0
        self._more = anyio.Event()

    def offer(self, line: str) -> None:
        """Add a line without waiting."""
        if len(self._waiting) >= FOLLOWER_LINES:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(line)
        self._more.set()

    def __aiter__(self) -> LogFollower:
        return self

    async def __anext__(self) -> str:
        while not self._waiting:
            self._more = anyio.Event()
            await self._more.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return f"[{missed} lines missed]"
        return self._waiting.popleft()


class LineSplitter:
    """Splits bytes that arrive in arbitrary pieces into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [_text(line) for line in whole]
        if len(self._rest) > MAX_LINE:
            lines.append(_text(self._rest))
            self._rest = b""
        return lines

    def finish(self) -> list[str]:
        """The last line, if it had no end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest.strip() else []


def _text(line: bytes) -> str:
    return line[:MAX_LINE].rstrip(b"\r").decode("utf-8", "replace")
