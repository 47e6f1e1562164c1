"""The history's SQLite file: its tables, how it is opened, and the upgrade of files that an earlier version wrote."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

logger = logging.getLogger(__name__)

TABLES: Final = ("requests", "switches", "breakers", "moments")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS switches (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS breakers (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS moments (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS positions (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS requests_at ON requests (at);
CREATE INDEX IF NOT EXISTS switches_at ON switches (at);
CREATE INDEX IF NOT EXISTS moments_at ON moments (at);
"""

#: Kept in the file as `PRAGMA user_version`; 0 is a new file, or one from before outcomes were renamed.
_VERSION: Final = 1

#: Outcomes and reasons in files of version 0, and their names since.
RENAMED_WORDS: Final[Mapping[str, str]] = {
    "not_had": "model_unavailable",
    "unpaid": "payment_required",
    "key_refused": "auth_failed",
    "client_left": "client_disconnected",
    "left": "client_disconnected",
    "resting": "circuit_open",
    "outside": "non_local",
    "spent": "budget_exhausted",
    "enough_tried": "max_attempts",
    "not_asked_for": "excluded",
    "cannot": "unsupported",
}

#: Fields of events in files of version 0, and their names since.
RENAMED_FIELDS: Final[Mapping[str, str]] = {
    "asked": "requested_model",
    "first_word_s": "first_token_s",
    "passed": "failed_hops",
    "why": "reason",
    "before": "previous",
    "spent": "phase_seconds",
}


def open_database(name: str) -> sqlite3.Connection:
    """Open, create or upgrade the file; `":memory:"` keeps it in memory. Raises `sqlite3.Error`."""
    # Used by one thread at a time, but not always by the same one.
    database = sqlite3.connect(name, check_same_thread=False, timeout=2.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_size_limit = 1048576")
        database.execute("PRAGMA cache_size = -256")  # KiB: what is written is hardly ever read
        database.executescript(_SCHEMA)
        # Reads the first page of every table: a damaged file is noticed now rather than at the first write.
        for table in TABLES:
            database.execute(f"SELECT n FROM {table} ORDER BY n DESC LIMIT 1").fetchone()
        try:
            _upgrade(database)
        except sqlite3.Error as error:  # locked, or a full disk: new events can be kept all the same
            if is_damaged(error):
                raise
            logger.warning("%s: older events not upgraded, next try at the next start: %s", name, error)
    except BaseException:
        database.close()
        raise
    return database


def make_private(file: Path) -> None:
    """Create the file and its folder if need be, readable by this user only. SQLite gives the files that it puts beside it
    the same mode. Raises `OSError`."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    for each in (file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):
            each.chmod(0o600)


def is_damaged(error: Exception) -> bool:
    """Whether a file is no database (any more), rather than locked, full or missing. Only damaged files cause an
    `OverflowError`."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, OverflowError) or (
        code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    )


def _upgrade(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0] >= _VERSION:
        return
    with database:
        for table in ("requests", "switches", "breakers"):
            rows = database.execute(f"SELECT n, body FROM {table}").fetchall()
            upgraded = [(body, n) for n, old in rows if (body := _upgraded(old)) is not None]
            database.executemany(f"UPDATE {table} SET body = ? WHERE n = ?", upgraded)
        database.execute(f"PRAGMA user_version = {_VERSION}")


def _upgraded(body: object) -> bytes | None:
    """A row in the current words; `None` if it cannot be read and stays as it is."""
    if not isinstance(body, bytes):
        return None
    try:
        return msgspec.json.encode(_renamed(msgspec.json.decode(body)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if not isinstance(value, dict):
        return value
    renamed = {}
    for old, content in value.items():
        name = RENAMED_FIELDS.get(old, old)
        if name in ("outcome", "reason") and isinstance(content, str):
            renamed[name] = "; ".join(map(_renamed_word, content.split("; ")))
        else:
            renamed[name] = _renamed(content)
    return renamed


def _renamed_word(part: str) -> str:
    """`backend: word`, or the word alone."""
    backend, colon, word = part.rpartition(": ")
    return backend + colon + RENAMED_WORDS.get(word, word)
