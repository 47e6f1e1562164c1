"""Records prompts and answers in a SQLite file of their own. Off by default, bounded in size and age."""

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

from hostler.gateway.state_files import state_file
from hostler.profiles.file_flags import NO_FOLLOW

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Bytes that may wait to be written; transcripts beyond it are dropped and counted.
_MAX_PENDING_BYTES = 32 * 1024**2
_WRITE_INTERVAL_S = 1.0
_PRUNE_INTERVAL_S = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS contents (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL, at REAL NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS contents_id ON contents (id);
"""


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """A request and its answer as sent and received; `truncated` names the parts that were longer than is stored."""

    id: str
    at: float
    request: str
    answer: str
    truncated: tuple[str, ...] = ()


class TranscriptLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of the file, in bytes and seconds."""

    max_bytes: int
    max_age_s: float


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file where the configuration names none."""
    return state_file("contents.sqlite3", environ)


class Transcripts:
    """Stores what `add` receives, and deletes the oldest beyond `limits`. Disk errors lose transcripts, never answers.

    The file is readable by its user only, and deleted contents are overwritten.
    """

    def __init__(self, file: Path, limits: TranscriptLimits, *, wall: Callable[[], float] = time.time) -> None:
        self.file = file
        self._limits = limits
        self._wall = wall
        self._database: sqlite3.Connection | None = None
        self._pending: deque[Transcript] = deque()
        self._pending_bytes = 0
        self._dropped = 0
        self._logged_error = False
        self._limiter = anyio.CapacityLimiter(1)
        self._opened = anyio.Event()

    def add(self, transcript: Transcript) -> None:
        """Never waits."""
        if self._pending_bytes > _MAX_PENDING_BYTES:
            self._dropped += 1
            return
        self._pending.append(transcript)
        self._pending_bytes += len(transcript.request) + len(transcript.answer)

    async def run(self) -> None:
        """Write until cancelled, and once more at the end."""
        await self._in_thread(self._open)
        self._opened.set()
        pruned = self._wall()
        try:
            while True:
                await anyio.sleep(_WRITE_INTERVAL_S)
                now = self._wall()
                if self._pending or not 0 <= now - pruned < _PRUNE_INTERVAL_S:
                    pruned = now
                    await self.flush()
        finally:
            with anyio.CancelScope(shield=True):
                await self.flush()
                await self._in_thread(self._close)

    async def flush(self) -> None:
        """Write pending transcripts, and delete those beyond the limits."""
        await self._opened.wait()
        fresh = list(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if self._dropped:
            logger.warning("%d requests not recorded: the disk is too slow", self._dropped)
            self._dropped = 0
        await self._in_thread(lambda: self._write(fresh))

    async def find(self, request_id: str) -> list[Transcript]:
        """The transcripts with this id, newest first: clients may choose ids, so there can be several."""
        await self.flush()
        return await self._in_thread(lambda: self._find(request_id)) or []

    async def _in_thread(self, work: Callable[[], _T]) -> _T | None:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        except (sqlite3.Error, OSError) as error:
            if not self._logged_error:
                logger.error("%s: cannot record contents: %s", self.file, error)
            self._logged_error = True
            return None

    # In the other thread, one at a time.

    def _open(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.file, os.O_CREAT | os.O_RDWR | NO_FOLLOW, 0o600))
        self.file.chmod(0o600)
        # Used by one thread at a time, but not always by the same one. No WAL: it would keep deleted contents.
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

    def _write(self, fresh: list[Transcript]) -> None:
        if self._database is None:
            return
        rows = [(each.id, each.at, len(body), body) for each in fresh if (body := msgspec.json.encode(each))]
        with self._database:
            self._database.executemany("INSERT INTO contents (id, at, size, body) VALUES (?, ?, ?, ?)", rows)
        self._prune()
        self._logged_error = False

    def _prune(self) -> None:
        assert self._database is not None
        oldest = self._wall() - self._limits.max_age_s
        with self._database:
            self._database.execute("DELETE FROM contents WHERE at < ?", (oldest,))
            self._database.execute(
                "DELETE FROM contents WHERE n <= (SELECT max(n) FROM (SELECT n, sum(size) OVER (ORDER BY n DESC) AS kept"
                " FROM contents) WHERE kept > ?)",
                (self._limits.max_bytes,),
            )

    def _find(self, request_id: str) -> list[Transcript]:
        if self._database is None:
            return []
        rows = self._database.execute("SELECT body FROM contents WHERE id = ? ORDER BY n DESC LIMIT 20", (request_id,))
        return [_decode(body) for (body,) in rows]


def _decode(body: bytes) -> Transcript:
    values = msgspec.json.decode(body)
    values.setdefault("truncated", values.pop("cut", ()))  # its name in older files
    return msgspec.convert(values, Transcript)
