"""The history's SQLite file: its tables, how it is opened, and the upgrade of files that an earlier version wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

import msgspec

TABLES: Final = ("requests", "switches", "breakers", "moments")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS switches (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS breakers (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS moments (n INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS requests_at ON requests (at);
CREATE INDEX IF NOT EXISTS switches_at ON switches (at);
CREATE INDEX IF NOT EXISTS moments_at ON moments (at);
"""

#: Kept in the file as `PRAGMA user_version`; 0 is a new file, or one from before outcomes were renamed.
_VERSION: Final = 1

#: Outcomes and reasons in files of version 0, and their names since.
RENAMED: Final[Mapping[str, str]] = {
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
        _upgrade(database)
    except BaseException:
        database.close()
        raise
    return database


def is_damaged(error: Exception) -> bool:
    """Whether a file is no database (any more), rather than locked, full or away. Numbers overflow in rubbish only."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, OverflowError) or (
        code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    )


def _upgrade(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0] >= _VERSION:
        return
    with database:
        upgraded = [
            (body, n)
            for n, old in database.execute("SELECT n, body FROM requests")
            if (body := _upgraded(old)) is not None
        ]
        database.executemany("UPDATE requests SET body = ? WHERE n = ?", upgraded)
        database.execute(f"PRAGMA user_version = {_VERSION}")


def _upgraded(body: object) -> bytes | None:
    """A row of requests in the current words; `None` if it stays as it is, or cannot be read."""
    if not isinstance(body, bytes):
        return None
    try:
        row = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for request in row if isinstance(row, list) else [row]:
        if isinstance(request, dict):
            _rename(request, "outcome")
            for part in ("attempts", "passed"):
                for each in request.get(part) or ():
                    _rename(each, "outcome")
                    _rename(each, "why")
            if isinstance(reason := request.get("reason"), str):
                request["reason"] = "; ".join(map(_renamed_reason, reason.split("; ")))
    return msgspec.json.encode(row)


def _rename(values: dict[str, Any], field: str) -> None:
    if field in values:
        values[field] = RENAMED.get(values[field], values[field])


def _renamed_reason(part: str) -> str:
    backend, colon, why = part.rpartition(": ")
    return f"{backend}{colon}{RENAMED.get(why, why)}" if colon else part
