"""API keys: created here, stored as hashes in a file, and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from hostler.gateway.context import ALL_SCOPES, Client, KeyRules, KeyScope
from hostler.profiles.file_lock import lock_file
from hostler.profiles.file_reading import FileTooLarge, home_path, read_limited
from hostler.supervisor.scheduling.queue import MAX_PRIORITY
from hostler.supervisor.state_store import replace_file

logger = logging.getLogger(__name__)

#: A key has 256 random bits, so one round of SHA-256 is enough.
_PREFIX = "hst-"
_RELOAD_S = 1.0


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the key file. `hash` is the SHA-256 of the whole key in hex, `created` seconds since the epoch.

    `local_only`: requests with this key are served by local backends only. `priority`: waiting requests with a higher one
    are served first. `expires` is in seconds since the epoch; `note` is for people.
    """

    name: str
    hash: str
    scopes: tuple[KeyScope, ...]
    created: int
    local_only: bool = False
    priority: Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    rules: KeyRules | None = None
    expires: int | None = None
    note: str = ""

    def is_expired(self, now: float) -> bool:
        """Whether the key is no longer valid. `now` is in seconds since the epoch."""
        return self.expires is not None and self.expires <= now


_NO_RULES = KeyRules()

#: Bytes of a key file, at most: some ten thousand keys.
_MAX_BYTES = 4 * 1024**2


class KeyFileError(Exception):
    """The key file cannot be used; the message names it and the line."""


def default_file() -> Path:
    """The key file where the configuration names none."""
    usual = os.environ.get("APPDATA") or "~/AppData/Roaming" if sys.platform == "win32" else "~/.config"
    base = os.environ.get("XDG_CONFIG_HOME") or usual
    return home_path(base) / "hostler" / "keys"


def read(path: Path) -> tuple[KeyRecord, ...]:
    """The records in the file, none if there is no file. Raises `KeyFileError`."""
    try:
        text = read_limited(path, _MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, FileTooLarge) as error:
        raise KeyFileError(f"{path}: cannot be read: {error}") from error
    return parse_keys(text, str(path))


def parse_keys(text: str, source: str) -> tuple[KeyRecord, ...]:
    """The records in the text of a file. `source` names it in errors. Raises `KeyFileError`."""
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            records.append(msgspec.json.decode(line, type=KeyRecord))
        except (msgspec.DecodeError, RecursionError) as error:
            raise KeyFileError(f"{source}:{number}: is not a key record: {error}") from error
    return tuple(records)


def add(
    path: Path,
    name: str,
    scopes: Iterable[KeyScope],
    *,
    local_only: bool = False,
    priority: int = 0,
    rules: KeyRules | None = None,
    expires: int | None = None,
    note: str = "",
    key: str | None = None,
) -> str:
    """Create a key, unless there is one, store its hash under `name`, and return the key. Raises `KeyFileError`."""
    wanted = frozenset(scopes)
    key = key or _PREFIX + secrets.token_urlsafe(32)
    record = KeyRecord(
        name=name,
        hash=digest(key),
        scopes=tuple(sorted(wanted & ALL_SCOPES)),
        created=int(time.time()),
        local_only=local_only,
        priority=priority,
        rules=None if rules == _NO_RULES else rules,
        expires=expires,
        note=note,
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(path):
        records = read(path)
        if any(each.name == name for each in records):
            raise KeyFileError(f"{path}: a key named {name!r} exists; revoke it first or use another name")
        _write(path, (*records, record))
    return key


def change(path: Path, name: str, **changes: object) -> bool:
    """Change fields of the key of that name, and of its rules; whether there was one. Raises `KeyFileError`."""
    if not path.exists():
        return False
    with _locked(path):
        records = list(read(path))
        for index, record in enumerate(records):
            if record.name == name:
                limits = {field: value for field, value in changes.items() if field in KeyRules.__struct_fields__}
                others = {field: value for field, value in changes.items() if field not in limits}
                rules = msgspec.structs.replace(record.rules or _NO_RULES, **limits)
                others["rules"] = None if rules == _NO_RULES else rules
                records[index] = msgspec.structs.replace(record, **others)
                _write(path, records)
                return True
    return False


def revoke(path: Path, name: str) -> bool:
    """Delete the key of that name; whether there was one."""
    if not path.exists():
        return False
    with _locked(path):
        records = read(path)
        kept = tuple(record for record in records if record.name != name)
        if len(kept) == len(records):
            return False
        _write(path, kept)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the key file, through a file beside it, since the key file itself is replaced."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        lock_file(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, records: Iterable[KeyRecord]) -> None:
    lines = [msgspec.json.encode(record) for record in records]
    try:
        for line in lines:
            msgspec.json.decode(line, type=KeyRecord)
    except msgspec.ValidationError as error:
        raise KeyFileError(f"{path}: is not changed: {error}") from error
    text = "# Hostler's API keys, hashed. `hostler keys add|set|revoke` changes this file.\n"
    text += "".join(line.decode() + "\n" for line in lines)
    replace_file(path, text.encode(), sync=True)


def _plain_record(number: int, key: str) -> KeyRecord:
    return KeyRecord(name=f"api-key-{number}", hash=digest(key), scopes=tuple(sorted(ALL_SCOPES)), created=0)


def digest(key: str) -> str:
    """The hash that is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def unless_taken(shared: Iterable[KeyRecord], own: Sequence[KeyRecord]) -> tuple[KeyRecord, ...]:
    """The shared keys that count beside a gateway's own ones: those of other names and hashes."""
    taken = {each.name for each in own} | {each.hash for each in own}
    return tuple(each for each in shared if each.name not in taken and each.hash not in taken)


class KeyRing:
    """The current keys: those of the file, `plain` ones, which have all scopes, and those of `shared`, a file of all gateways
    of the cluster, unless the first ones have their names.

    A changed file is read again within a second; an invalid one is logged and the old keys stay.

    Without any key left every request is refused: whether keys are needed was decided at the start.
    """

    def __init__(
        self,
        path: Path,
        plain: Iterable[str] = (),
        *,
        shared: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._shared = shared
        self._clock = clock
        self._wall = wall
        self._stamp = self._mark()
        self._plain = tuple(_plain_record(number, key) for number, key in enumerate(plain, start=1))
        self._own = self._read_own()
        self._of_all: tuple[KeyRecord, ...] = ()
        self._records = self._read()
        self._checked = clock()

    def __bool__(self) -> bool:
        return bool(self._records)

    @property
    def edition(self) -> object:
        """The same object as long as the keys have not changed."""
        self._refresh()
        return self._records

    def client(self, key: str) -> Client | None:
        """The client of a key. Every record is compared, each in constant time."""
        return self.client_of_hash(digest(key))

    def client_of_hash(self, hashed: str) -> Client | None:
        """The client of the key with this hash; `None` if there is none, or if it has expired."""
        record = self._record(hashed)
        if record is None or record.is_expired(self._wall()):
            return None
        return Client(
            name=record.name,
            identity=record.hash[:16],
            scopes=frozenset(record.scopes),
            local_only=record.local_only,
            priority=record.priority,
            rules=record.rules,
            expires=record.expires is not None,
        )

    def is_expired(self, key: str) -> bool:
        """Whether this was a valid key until it expired."""
        record = self._record(digest(key))
        return record is not None and record.is_expired(self._wall())

    def records(self) -> tuple[KeyRecord, ...]:
        """All keys, expired ones included."""
        self._refresh()
        return self._records

    def own(self) -> tuple[KeyRecord, ...]:
        """The keys of this gateway alone."""
        self._refresh()
        return self._own

    def _read_own(self) -> tuple[KeyRecord, ...]:
        return (*self._plain, *read(self._path))

    def _read(self) -> tuple[KeyRecord, ...]:
        """All keys, the shared ones as they were if their file cannot be read."""
        if self._shared is None:
            return self._own
        try:
            self._of_all = read(self._shared)
        except KeyFileError as error:
            logger.error("%s; keeping the previous shared keys", error)
        return (*self._own, *unless_taken(self._of_all, self._own))

    def _record(self, hashed: str) -> KeyRecord | None:
        self._refresh()
        found: KeyRecord | None = None
        for record in self._records:
            if hmac.compare_digest(record.hash, hashed):
                found = record
        return found

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < _RELOAD_S:
            return
        self._checked = now
        stamp = self._mark()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._own = self._read_own()
        except KeyFileError as error:
            logger.error("%s; keeping the previous keys", error)
        records = self._read()
        if not records:
            logger.warning(
                "%s contains no keys any more; all requests are refused until `hostler keys add NAME`", self._path
            )
        self._records = records

    def _mark(self) -> object:
        return _mark_of(self._path), None if self._shared is None else _mark_of(self._shared)


def _mark_of(path: Path) -> tuple[int, ...] | None:
    """What differs after each change of a file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    # A link may lead to another file of the same size and time.
    return stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns, stat.st_ino
