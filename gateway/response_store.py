"""Stored responses, by client: a bounded store in memory, and the file that keeps it over restarts if there is one."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from hostler.adapters.stored_response import StoredResponse
from hostler.gateway.state_files import state_file
from hostler.profiles.file_flags import NO_FOLLOW

logger = logging.getLogger(__name__)

#: Responses that one follows from the last, at most.
_LONGEST_HISTORY: Final = 1000
_WRITE_INTERVAL_S: Final = 1.0
#: Responses taken over from the file in one go.
_BATCH: Final = 100

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS responses (
    n INTEGER PRIMARY KEY, client TEXT NOT NULL, id TEXT NOT NULL, at REAL NOT NULL, body BLOB NOT NULL,
    UNIQUE (client, id) ON CONFLICT REPLACE
);
"""

_Key = tuple[str, str]
_T = TypeVar("_T")


class _Entry(msgspec.Struct, frozen=True):
    response: StoredResponse
    size: int


class _Shelf:
    """The responses of one client, the oldest first; `holders` are the responses that have an item, by its id."""

    __slots__ = ("entries", "holders", "size")

    def __init__(self) -> None:
        self.entries: OrderedDict[str, _Entry] = OrderedDict()
        self.holders: dict[str, list[str]] = {}
        self.size = 0

    @property
    def oldest(self) -> StoredResponse:
        return next(iter(self.entries.values())).response

    def add(self, entry: _Entry) -> None:
        response = entry.response
        self.entries[response.id] = entry
        self.size += entry.size
        for item_id in response.output:
            self.holders.setdefault(item_id, []).append(response.id)

    def remove(self, response_id: str) -> StoredResponse | None:
        entry = self.entries.pop(response_id, None)
        if entry is None:
            return None
        self.size -= entry.size
        for item_id in entry.response.output:
            self.holders[item_id].remove(response_id)
            if not self.holders[item_id]:
                del self.holders[item_id]
        return entry.response


class ResponsePeers(Protocol):
    """Other gateways that have the same responses."""

    def added(self, client: str, response: StoredResponse) -> None:
        """A response was stored here."""
        ...

    def deleted(self, client: str, response_id: str) -> None:
        """A response was deleted here."""
        ...

    async def fetch(self, client: str, ids: Collection[str]) -> None:
        """Take over what they have stored, as far as they can be reached."""
        ...


class ResponseStore:
    """The responses of all clients, each visible to its own client only. The oldest are dropped beyond the limits: those
    of the client that has most.

    `max_bytes` bounds what is kept, `max_age_s` for how long. With a `file`, `run` reads it and writes every change to it
    within a second; errors of the disk lose stored responses, never answers. `peers` are other gateways that have the same ones.
    """

    def __init__(self, file: Path | None, *, max_bytes: int, max_age_s: float, wall: Callable[[], float]) -> None:
        self.file = file
        self.wall = wall
        self.peers: ResponsePeers | None = None
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._shelves: dict[str, _Shelf] = {}
        #: Of each id of a response or an item, how many there are.
        self._ids: Counter[str] = Counter()
        self._bytes = 0
        self._changed: dict[_Key, StoredResponse | None] = {}
        self._logged_error = False

    def of(self, client: str) -> ClientResponses:
        """The stored responses of one client."""
        return ClientResponses(self, client)

    def add(self, client: str, response: StoredResponse) -> None:
        """Store a response, and drop old ones for it."""
        self.take_over(client, response)
        if self.peers is not None:
            self.peers.added(client, response)

    def take_over(self, client: str, response: StoredResponse) -> None:
        """Store a response of another gateway."""
        self._insert(client, response)
        if self.find(client, response.id) is response:
            self._changed[(client, response.id)] = response

    def find(self, client: str, response_id: str) -> StoredResponse | None:
        """The response, unless it is too old."""
        shelf = self._shelves.get(client)
        entry = None if shelf is None else shelf.entries.get(response_id)
        return None if entry is None or self._is_old(entry.response) else entry.response

    def find_item(self, client: str, item_id: str) -> msgspec.Raw | None:
        """An item of one of the client's responses, unless that is too old."""
        shelf = self._shelves.get(client)
        holders = () if shelf is None else shelf.holders.get(item_id, ())
        found = next((each for name in reversed(holders) if (each := self.find(client, name)) is not None), None)
        return None if found is None else found.output[item_id]

    def is_foreign(self, client: str, an_id: str) -> bool:
        """Whether only other clients have a response or an item of this id."""
        shelf = self._shelves.get(client)
        has_it = shelf is not None and (an_id in shelf.entries or an_id in shelf.holders)
        return an_id in self._ids and not has_it

    def delete(self, client: str, response_id: str) -> None:
        """Forget a response and its items, except for those that other responses of the client have, too."""
        self.forget(client, response_id)
        if self.peers is not None:
            self.peers.deleted(client, response_id)

    def forget(self, client: str, response_id: str) -> None:
        """Delete a response, as another gateway has done."""
        self._drop(client, response_id)

    async def run(self) -> None:
        """Keep the file like the memory until cancelled, and once more at the end."""
        if self.file is None:
            return
        await self.load()
        try:
            while True:
                await anyio.sleep(_WRITE_INTERVAL_S)
                await self.flush()
        finally:
            with anyio.CancelScope(shield=True):
                await self.flush()

    async def load(self) -> None:
        """Read the file."""
        for number, (client, response) in enumerate(await self._in_thread(self._read) or ()):
            if self.find(client, response.id) is None:
                self._insert(client, response)
            if number % _BATCH == 0:
                await anyio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Write what has changed."""
        if self._changed and self.file is not None:
            changed, self._changed = self._changed, {}
            await self._in_thread(lambda: self._write(changed))

    # Inside

    def _insert(self, client: str, response: StoredResponse) -> None:
        self._drop(client, response.id)
        items = (*response.input, *response.output.values())
        # The body repeats the output; both are counted, with an allowance for the objects.
        size = len(bytes(response.body)) + sum(len(bytes(item)) + 100 for item in items) + 500
        self._shelves.setdefault(client, _Shelf()).add(_Entry(response, size))
        self._bytes += size
        self._ids.update((response.id, *response.output))
        for other in list(self._shelves):
            while other in self._shelves and self._is_old(oldest := self._shelves[other].oldest):
                self._drop(other, oldest.id)
        while self._bytes > self._max_bytes:
            largest = max(self._shelves, key=lambda each: self._shelves[each].size)
            self._drop(largest, self._shelves[largest].oldest.id)

    def _is_old(self, response: StoredResponse) -> bool:
        return response.at < self.wall() - self._max_age_s

    def _drop(self, client: str, response_id: str) -> None:
        shelf = self._shelves.get(client)
        size = 0 if shelf is None else shelf.size
        if shelf is None or (response := shelf.remove(response_id)) is None:
            return
        self._bytes -= size - shelf.size
        if not shelf.entries:
            del self._shelves[client]
        for an_id in (response.id, *response.output):
            self._ids[an_id] -= 1
            if not self._ids[an_id]:
                del self._ids[an_id]
        self._changed[(client, response_id)] = None

    # In a thread

    async def _in_thread(self, work: Callable[[], _T]) -> _T | None:
        try:
            result = await anyio.to_thread.run_sync(work)
            self._logged_error = False
            return result
        except (sqlite3.Error, OSError) as error:
            if not self._logged_error:
                logger.error("%s: cannot store responses: %s", self.file, error)
            self._logged_error = True
            return None

    def _open(self) -> sqlite3.Connection:
        assert self.file is not None
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.file, os.O_CREAT | os.O_RDWR | NO_FOLLOW, 0o600))
        self.file.chmod(0o600)
        database = sqlite3.connect(self.file, timeout=2.0)
        try:
            database.execute("PRAGMA auto_vacuum = FULL")
            database.execute("PRAGMA secure_delete = ON")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def _read(self) -> list[tuple[str, StoredResponse]]:
        found: list[tuple[str, StoredResponse]] = []
        database = self._open()
        try:
            for client, body in database.execute("SELECT client, body FROM responses ORDER BY n"):
                # Those of another release, or damaged ones, are left out.
                with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
                    found.append((client, msgspec.json.decode(body, type=StoredResponse)))
        finally:
            database.close()
        return found

    def _write(self, changed: Mapping[_Key, StoredResponse | None]) -> None:
        database = self._open()
        try:
            with database:
                for (client, response_id), response in changed.items():
                    if response is None:
                        database.execute("DELETE FROM responses WHERE client = ? AND id = ?", (client, response_id))
                    else:
                        row = (client, response_id, response.at, msgspec.json.encode(response))
                        database.execute("INSERT INTO responses (client, id, at, body) VALUES (?, ?, ?, ?)", row)
        finally:
            database.close()


class ClientResponses:
    """The stored responses of one client; see `StoredResponses`."""

    def __init__(self, store: ResponseStore, client: str) -> None:
        self._store = store
        self._client = client

    def find(self, response_id: str) -> StoredResponse | None:
        return self._store.find(self._client, response_id)

    def find_item(self, item_id: str) -> msgspec.Raw | None:
        return self._store.find_item(self._client, item_id)

    def is_foreign(self, an_id: str) -> bool:
        return self._store.is_foreign(self._client, an_id)

    def history(self, response_id: str) -> Sequence[StoredResponse] | None:
        """See `StoredResponses`."""
        found: list[StoredResponse] = []
        following: str | None = response_id
        while following is not None:
            response = self.find(following)
            if response is None or not response.complete or len(found) >= _LONGEST_HISTORY:
                return None
            found.append(response)
            following = response.previous
        return found[::-1]


class MissedResponses(ClientResponses):
    """Notes in `missed` the ids of responses and items that are not here."""

    def __init__(self, store: ResponseStore, client: str) -> None:
        super().__init__(store, client)
        self.missed: dict[str, None] = {}

    def find(self, response_id: str) -> StoredResponse | None:
        found = super().find(response_id)
        if found is None:
            self.missed[response_id] = None
        return found

    def find_item(self, item_id: str) -> msgspec.Raw | None:
        found = super().find_item(item_id)
        if found is None:
            self.missed[item_id] = None
        return found


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file where the configuration names none."""
    return state_file("responses.sqlite3", environ)
