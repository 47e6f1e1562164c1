"""What was asked and answered, word by word: kept only where somebody switched that on, in a file of its own. Bounded."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: What waits to be written may take this much; what comes beyond it is left out and counted.
_MOST_WAITING = 32 * 1024**2
_WRITE_EVERY_S = 1.0
_LOOK_EVERY_S = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS contents (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL, at REAL NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS contents_id ON contents (id);
"""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A request and its answer as they went over the wire; `cut` names what was longer than is kept."""

    id: str
    at: float
    request: str
    answer: str
    cut: tuple[str, ...] = ()


class TranscriptRules(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept in all, and for how long."""

    max_bytes: int
    max_age_s: float


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where it is kept when the configuration names no file."""
    if directory := environ.get("STATE_DIRECTORY"):  # systemd's; several are joined by colons
        return Path(directory.partition(":")[0]) / "contents.sqlite3"
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "hostler" / "contents.sqlite3"


class Transcripts:
    """Keeps what is added, the newest of it. Nobody waits for the disk; one that is full costs the record, not the answer.

    The file is readable by its user only, and what goes from it is overwritten.
    """

    def __init__(self, file: Path, rules: TranscriptRules, *, wall: Callable[[], float] = time.time) -> None:
        self.file = file
        self._rules = rules
        self._wall = wall
        self._database: sqlite3.Connection | None = None
        self._waiting: deque[Recorded] = deque()
        self._waiting_bytes = 0
        self._left_out = 0
        self._complained = False
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._opened = anyio.Event()

    def add(self, recorded: Recorded) -> None:
        """Another one. Never waits."""
        if self._waiting_bytes > _MOST_WAITING:
            self._left_out += 1
            return
        self._waiting.append(recorded)
        self._waiting_bytes += len(recorded.request) + len(recorded.answer)

    async def run(self) -> None:
        """Write until cancelled, and once more then."""
        await self._in_thread(self._open)
        self._opened.set()
        looked = self._wall()
        try:
            while True:
                await anyio.sleep(_WRITE_EVERY_S)
                now = self._wall()
                if self._waiting or not 0 <= now - looked < _LOOK_EVERY_S:
                    looked = now
                    await self.flush()
        finally:
            with anyio.CancelScope(shield=True):
                await self.flush()
                await self._in_thread(self._close)

    async def flush(self) -> None:
        """Write what has come so far, and let go of what is too much or too old."""
        await self._opened.wait()
        fresh = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        if self._left_out:
            logger.warning("%d requests were not recorded: they came faster than the disk takes them", self._left_out)
            self._left_out = 0
        await self._in_thread(lambda: self._write(fresh))

    async def find(self, request_id: str) -> list[Recorded]:
        """What is recorded under this id, the newest first: clients may choose ids, so there can be several."""
        await self.flush()
        return await self._in_thread(lambda: self._find(request_id)) or []

    async def _in_thread(self, work: Callable[[], _T]) -> _T | None:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._one_at_a_time)
        except (sqlite3.Error, OSError) as error:
            if not self._complained:
                logger.error("%s: contents cannot be recorded: %s", self.file, error)
            self._complained = True
            return None

    # In the other thread, one at a time.

    def _open(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.file, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        self.file.chmod(0o600)
        # Used by one thread at a time, but not always by the same one. A journal beside the file would have its own life.
        database = sqlite3.connect(self.file, check_same_thread=False, timeout=2.0)
        try:
            database.execute("PRAGMA auto_vacuum = FULL")
            database.execute("PRAGMA secure_delete = ON")
            database.execute("PRAGMA synchronous = OFF")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        self._database = database
        self._prune()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _write(self, fresh: list[Recorded]) -> None:
        if self._database is None:
            return
        rows = [(each.id, each.at, len(body), body) for each in fresh if (body := msgspec.json.encode(each))]
        with self._database:
            self._database.executemany("INSERT INTO contents (id, at, size, body) VALUES (?, ?, ?, ?)", rows)
        self._prune()
        self._complained = False

    def _prune(self) -> None:
        assert self._database is not None
        oldest = self._wall() - self._rules.max_age_s
        with self._database:
            self._database.execute("DELETE FROM contents WHERE at < ?", (oldest,))
            self._database.execute(
                "DELETE FROM contents WHERE n <= (SELECT max(n) FROM (SELECT n, sum(size) OVER (ORDER BY n DESC) AS kept"
                " FROM contents) WHERE kept > ?)",
                (self._rules.max_bytes,),
            )

    def _find(self, request_id: str) -> list[Recorded]:
        if self._database is None:
            return []
        rows = self._database.execute("SELECT body FROM contents WHERE id = ? ORDER BY n DESC LIMIT 20", (request_id,))
        return [msgspec.json.decode(body, type=Recorded) for (body,) in rows]
