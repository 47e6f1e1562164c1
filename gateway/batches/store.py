"""Files and batches in a database: each result is on the disk before the next request begins."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import msgspec

from hostler.adapters.errors import GatewayError, RequestTooLarge
from hostler.gateway.batches.records import Batch, BatchItem, Counts, ItemOutcome, ItemResult, StoredFile
from hostler.profiles.file_flags import NO_FOLLOW

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, record BLOB NOT NULL,
    expires_at REAL, size INTEGER NOT NULL, content BLOB
);
CREATE TABLE IF NOT EXISTS batches (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, protocol TEXT NOT NULL,
    active INTEGER NOT NULL, ended_at REAL, record BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS items (
    batch TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, model TEXT NOT NULL, body BLOB,
    outcome TEXT, result BLOB, size INTEGER NOT NULL, PRIMARY KEY (batch, number), UNIQUE (batch, custom_id)
);
CREATE INDEX IF NOT EXISTS pending ON items (model, batch, number) WHERE outcome IS NULL;
"""

#: Results read from the database in one go.
_ROWS: Final = 200

#: What an output file shows, and an error file.
_SUCCEEDED: Final[tuple[ItemOutcome, ...]] = ("succeeded",)
_FAILED: Final[tuple[ItemOutcome, ...]] = ("errored", "expired", "cancelled")

_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode


class StorageFailed(GatewayError):
    """The disk of the batches failed."""

    status, code = 503, "storage_failed"
    final = False


class BatchStore:
    """The files and batches of all clients. `max_bytes` bounds what all of them hold together, `max_age_s` how long files
    and ended batches are kept. `owner` sees its own only. Raises `RequestTooLarge` and `StorageFailed`."""

    def __init__(self, file: Path, *, max_bytes: int, max_age_s: float, wall: Callable[[], float]) -> None:
        self.file = file
        self.wall = wall
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        #: One thread at a time; calls that wait for it hold no thread that the rest of the gateway needs.
        self._limiter = anyio.CapacityLimiter(1)
        self._database: sqlite3.Connection | None = None
        #: As of the last look, and what was written since then: a sum over all results takes too long for each.
        self._used = 0

    async def aclose(self) -> None:
        """Close the database."""
        await anyio.to_thread.run_sync(self._close, limiter=self._limiter)

    # Files

    async def add_file(self, record: StoredFile, content: bytes) -> None:
        """Store an uploaded file."""
        await self._run(lambda database: self._add_file(database, record, content))

    async def find_file(self, owner: str, file_id: str) -> StoredFile | None:
        """The file, if it belongs to the owner."""
        query = "SELECT record FROM files WHERE id = ? AND owner = ?"
        rows = await self._run(lambda database: database.execute(query, (file_id, owner)).fetchall())
        return msgspec.json.decode(rows[0][0], type=StoredFile) if rows else None

    async def files(self, owner: str) -> list[StoredFile]:
        """The files of the owner, the newest first."""
        query = "SELECT record FROM files WHERE owner = ? ORDER BY n DESC"
        rows = await self._run(lambda database: database.execute(query, (owner,)).fetchall())
        return [msgspec.json.decode(row[0], type=StoredFile) for row in rows]

    async def content(self, file_id: str) -> bytes | None:
        """The content of an uploaded file; `None` if there is none of that id, any more."""
        query = "SELECT content FROM files WHERE id = ?"
        rows = await self._run(lambda database: database.execute(query, (file_id,)).fetchall())
        return bytes(rows[0][0] or b"") if rows else None

    async def delete_file(self, record: StoredFile) -> None:
        """Delete a file, and the results that it shows."""
        await self._run(lambda database: self._delete_file(database, record))

    # Batches

    async def add_batch(self, batch: Batch, items: Sequence[BatchItem] = ()) -> None:
        """Store a batch, with its requests if they are known already."""
        await self._run(lambda database: self._add_batch(database, batch, items))

    async def begin(self, batch: Batch, items: Sequence[BatchItem]) -> bool:
        """Store the requests of a batch that has been validated; `False` if it was deleted or cancelled meanwhile."""
        return await self._run(lambda database: self._begin(database, batch, items))

    async def find_batch(self, owner: str, batch_id: str) -> Batch | None:
        """The batch, if it belongs to the owner."""
        query = "SELECT record FROM batches WHERE id = ? AND owner = ?"
        rows = await self._run(lambda database: database.execute(query, (batch_id, owner)).fetchall())
        return msgspec.json.decode(rows[0][0], type=Batch) if rows else None

    async def batches(self, owner: str, protocol: str) -> list[Batch]:
        """The batches of the owner, the newest first."""
        query = "SELECT record FROM batches WHERE owner = ? AND protocol = ? ORDER BY n DESC"
        rows = await self._run(lambda database: database.execute(query, (owner, protocol)).fetchall())
        return [msgspec.json.decode(row[0], type=Batch) for row in rows]

    async def active_batches(self) -> list[Batch]:
        """The batches of all owners that have not ended, the oldest first."""
        query = "SELECT record FROM batches WHERE active ORDER BY n"
        rows = await self._run(lambda database: database.execute(query).fetchall())
        return [msgspec.json.decode(row[0], type=Batch) for row in rows]

    async def update(self, batch_id: str, change: Callable[[Batch], Batch | None]) -> Batch | None:
        """Replace a batch by what `change` makes of it; `None` leaves it. Returns the batch as it is then."""
        return await self._run(lambda database: self._update(database, batch_id, change))

    async def delete_batch(self, batch_id: str) -> None:
        """Delete a batch with its results."""
        await self._run(lambda database: _delete_batch(database, batch_id))

    async def counts(self, batch_id: str) -> Counts:
        """The numbers of its requests by outcome."""
        query = "SELECT coalesce(outcome, 'processing'), count(*) FROM items WHERE batch = ? GROUP BY outcome"
        rows = await self._run(lambda database: database.execute(query, (batch_id,)).fetchall())
        return msgspec.convert(dict(rows), Counts)

    # Items

    async def pending_models(self) -> list[str]:
        """The models of the requests that have not ended."""
        query = (
            "SELECT DISTINCT model FROM items JOIN batches ON batches.id = items.batch WHERE outcome IS NULL AND active"
        )
        return [row[0] for row in await self._run(lambda database: database.execute(query).fetchall())]

    async def next_items(self, model: str, limit: int) -> list[BatchItem]:
        """The first requests for a model that have not ended, in the order of their batches."""
        query = (
            "SELECT items.batch, number, custom_id, model, body FROM items JOIN batches ON batches.id = items.batch "
            "WHERE outcome IS NULL AND model = ? AND active ORDER BY batches.n, number LIMIT ?"
        )
        rows = await self._run(lambda database: database.execute(query, (model, limit)).fetchall())
        return [BatchItem(batch=row[0], number=row[1], custom_id=row[2], model=row[3], body=row[4]) for row in rows]

    async def finish(self, item: BatchItem, result: ItemResult) -> bool:
        """Store a result; `False` if the request has ended already, or there is no room: then it ends with an error."""
        return await self._run(lambda database: self._finish(database, item, result))

    async def end_pending(self, batch_id: str, outcome: ItemOutcome) -> None:
        """End the requests of a batch that have not ended yet."""
        query = "UPDATE items SET outcome = ?, body = NULL, size = 0 WHERE batch = ? AND outcome IS NULL"
        await self._run(lambda database: database.execute(query, (outcome, batch_id)))

    async def results(
        self, batch_id: str, outcomes: Sequence[ItemOutcome], after: int = -1
    ) -> list[tuple[int, str, ItemResult]]:
        """Some results of a batch behind a number, each with its number and its custom ID. Empty at the end."""
        marks = ", ".join("?" * len(outcomes))
        query = (
            f"SELECT number, custom_id, outcome, result FROM items WHERE batch = ? AND number > ? AND outcome IN ({marks}) "
            "ORDER BY number LIMIT ?"
        )
        values = (batch_id, after, *outcomes, _ROWS)
        rows = await self._run(lambda database: database.execute(query, values).fetchall())
        return [
            (row[0], row[1], msgspec.json.decode(row[3], type=ItemResult) if row[3] else ItemResult(outcome=row[2]))
            for row in rows
        ]

    # Limits

    async def drop_old(self) -> None:
        """Delete files that have expired, and batches that ended long ago, with their results."""
        await self._run(self._drop_old)

    # In a thread

    async def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        return await anyio.to_thread.run_sync(lambda: self._in_transaction(work), limiter=self._limiter)

    def _in_transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._transaction() as database:
            return work(database)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            database = self._database = self._database or self._open()
            with database:
                yield database
        except (sqlite3.Error, OSError) as error:
            raise StorageFailed(f"batches cannot be stored ({error}); see gateway.batches.file") from error

    def _open(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.file, os.O_CREAT | os.O_RDWR | NO_FOLLOW, 0o600))
        self.file.chmod(0o600)
        # Used by one thread at a time.
        database = sqlite3.connect(self.file, timeout=5.0, check_same_thread=False)
        try:
            database.execute("PRAGMA auto_vacuum = FULL")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA secure_delete = ON")
            database.executescript(_SCHEMA)
            self._used = _used(database)
        except BaseException:
            database.close()
            raise
        return database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _check_room(self, database: sqlite3.Connection, size: int) -> None:
        used = self._used = _used(database)
        if used + size > self.max_bytes:
            raise RequestTooLarge(
                f"files and batches may take {self.max_bytes} bytes together (gateway.batches.max_size), and take {used}; "
                "delete files or batches that are no longer needed"
            )

    def _add_file(self, database: sqlite3.Connection, record: StoredFile, content: bytes) -> None:
        self._check_room(database, len(content))
        row = (record.id, record.owner, _encode(record), record.expires_at, len(content), content)
        database.execute(
            "INSERT INTO files (id, owner, record, expires_at, size, content) VALUES (?, ?, ?, ?, ?, ?)", row
        )

    def _delete_file(self, database: sqlite3.Connection, record: StoredFile) -> None:
        database.execute("DELETE FROM files WHERE id = ?", (record.id,))
        if record.source is not None:
            marks = ", ".join("?" * len(record.outcomes))
            query = f"UPDATE items SET result = NULL, size = 0 WHERE batch = ? AND outcome IN ({marks})"
            database.execute(query, (record.source, *record.outcomes))
        self._used = _used(database)

    def _add_batch(self, database: sqlite3.Connection, batch: Batch, items: Sequence[BatchItem]) -> None:
        record = _encode(batch)
        self._check_room(database, len(record) + sum(len(item.body) for item in items))
        row = (batch.id, batch.owner, batch.protocol, batch.active, record)
        database.execute("INSERT INTO batches (id, owner, protocol, active, record) VALUES (?, ?, ?, ?, ?)", row)
        self._add_items(database, items)

    def _add_items(self, database: sqlite3.Connection, items: Sequence[BatchItem]) -> None:
        rows = ((each.batch, each.number, each.custom_id, each.model, each.body, len(each.body)) for each in items)
        query = "INSERT INTO items (batch, number, custom_id, model, body, size) VALUES (?, ?, ?, ?, ?, ?)"
        database.executemany(query, rows)

    def _begin(self, database: sqlite3.Connection, batch: Batch, items: Sequence[BatchItem]) -> bool:
        updated = self._update(database, batch.id, lambda now: batch if now.status == "validating" else None)
        if updated != batch:
            return False
        self._check_room(database, sum(len(item.body) for item in items))
        self._add_items(database, items)
        return True

    def _update(
        self, database: sqlite3.Connection, batch_id: str, change: Callable[[Batch], Batch | None]
    ) -> Batch | None:
        rows = database.execute("SELECT record FROM batches WHERE id = ?", (batch_id,)).fetchall()
        if not rows:
            return None
        before = msgspec.json.decode(rows[0][0], type=Batch)
        after = change(before)
        if after is None:
            return before
        row = (after.active, after.ended_at, _encode(after), batch_id)
        database.execute("UPDATE batches SET active = ?, ended_at = ?, record = ? WHERE id = ?", row)
        for file_id, outcomes, name in (
            (after.output_file, _SUCCEEDED, "output"),
            (after.error_file, _FAILED, "error"),
        ):
            if file_id is not None and file_id not in (before.output_file, before.error_file):
                self._add_result_file(database, after, file_id, outcomes, name)
        return after

    def _add_result_file(
        self, database: sqlite3.Connection, batch: Batch, file_id: str, outcomes: tuple[ItemOutcome, ...], name: str
    ) -> None:
        marks = ", ".join("?" * len(outcomes))
        query = f"SELECT coalesce(sum(size), 0) FROM items WHERE batch = ? AND outcome IN ({marks})"
        (size,) = database.execute(query, (batch.id, *outcomes)).fetchone()
        now = self.wall()
        record = StoredFile(
            id=file_id, owner=batch.owner, filename=f"{batch.id}_{name}.jsonl", purpose="batch_output", bytes=size,
            created_at=now, source=batch.id, outcomes=outcomes,
        )  # fmt: skip
        # The content is that of the batch's items.
        row = (file_id, batch.owner, _encode(record), None, 0)
        database.execute("INSERT INTO files (id, owner, record, expires_at, size) VALUES (?, ?, ?, ?, ?)", row)

    def _finish(self, database: sqlite3.Connection, item: BatchItem, result: ItemResult) -> bool:
        encoded = _encode(result)
        if self._used + len(encoded) - len(item.body) > self.max_bytes:
            full = "there is no room for more results (gateway.batches.max_size)"
            encoded = _encode(ItemResult(outcome="errored", code="storage_full", message=full))
            result = ItemResult(outcome="errored")
        query = (
            "UPDATE items SET outcome = ?, result = ?, size = ?, body = NULL "
            "WHERE batch = ? AND number = ? AND outcome IS NULL"
        )
        row = (result.outcome, encoded, len(encoded), item.batch, item.number)
        done = database.execute(query, row).rowcount == 1
        self._used += len(encoded) - len(item.body) if done else 0
        return done

    def _drop_old(self, database: sqlite3.Connection) -> None:
        now = self.wall()
        old = now - self.max_age_s
        for (batch_id,) in database.execute("SELECT id FROM batches WHERE ended_at < ?", (old,)).fetchall():
            _delete_batch(database, batch_id)
        database.execute("DELETE FROM files WHERE expires_at < ?", (now,))
        self._used = _used(database)


def _delete_batch(database: sqlite3.Connection, batch_id: str) -> None:
    database.execute("DELETE FROM items WHERE batch = ?", (batch_id,))
    database.execute("DELETE FROM batches WHERE id = ?", (batch_id,))
    database.execute("DELETE FROM files WHERE json_extract(record, '$.source') = ?", (batch_id,))


def _used(database: sqlite3.Connection) -> int:
    sizes = ("sum(size) FROM files", "sum(length(record)) FROM batches", "sum(size) FROM items")
    query = "SELECT " + " + ".join(f"coalesce((SELECT {each}), 0)" for each in sizes)
    (size,) = database.execute(query).fetchone()
    return int(size)
