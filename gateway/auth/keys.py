"""API keys: made here, kept as hashes in a file, and looked up in constant time."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hostler.gateway.context import ALL_SCOPES, Client, KeyScope
from hostler.supervisor.state_store import replace_file

logger = logging.getLogger(__name__)

#: A key is 256 random bits, so one round of SHA-256 is enough to keep it: there is nothing to guess.
_PREFIX = "hst-"
_RELOAD_S = 1.0


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the key file. `hash` is the SHA-256 of the whole key in hex, `created` seconds since the epoch.

    `local_only`: what is asked with this key never leaves the house. `priority`: of those who wait, requests with a
    higher one are served first.
    """

    name: str
    hash: str
    scopes: tuple[KeyScope, ...]
    created: int
    local_only: bool = False
    priority: int = 0


class KeyFileError(Exception):
    """The key file cannot be used; the message names it and the line."""


def default_file() -> Path:
    """Where keys are kept when the configuration names no file."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "hostler" / "keys"


def read(path: Path) -> tuple[KeyRecord, ...]:
    """The records in the file, none if there is no file. Raises `KeyFileError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            records.append(msgspec.json.decode(line, type=KeyRecord))
        except msgspec.DecodeError as error:
            raise KeyFileError(f"{path}:{number}: is not a key record: {error}") from error
    return tuple(records)


def add(path: Path, name: str, scopes: Iterable[KeyScope], *, local_only: bool = False, priority: int = 0) -> str:
    """Make a key, keep its hash under `name`, and return the key: it is shown this once. Raises `KeyFileError`."""
    wanted = frozenset(scopes)
    key = _PREFIX + secrets.token_urlsafe(32)
    record = KeyRecord(
        name=name,
        hash=digest(key),
        scopes=tuple(sorted(wanted & ALL_SCOPES)),
        created=int(time.time()),
        local_only=local_only,
        priority=priority,
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(path):
        records = read(path)
        if any(each.name == name for each in records):
            raise KeyFileError(f"{path}: a key named {name!r} exists; revoke it first or take another name")
        _write(path, (*records, record))
    return key


def revoke(path: Path, name: str) -> bool:
    """Forget the key of that name; whether there was one."""
    if not path.exists():
        return False
    with _alone(path):
        records = read(path)
        kept = tuple(record for record in records if record.name != name)
        if len(kept) == len(records):
            return False
        _write(path, kept)
    return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else changes the key file meanwhile. What is locked is a file beside it: itself, it is replaced."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, records: Iterable[KeyRecord]) -> None:
    text = "# Hostler's API keys, hashed. `hostler keys add|list|revoke` changes this file.\n"
    text += "".join(msgspec.json.encode(record).decode() + "\n" for record in records)
    replace_file(path, text.encode(), sync=True)


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """The keys in force. A changed file is read again within a second; a broken one is reported and the old keys stay.

    Without any key left there is nobody whose key could be right: whether keys are needed was decided at the start.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._records = read(path)
        self._stamp = self._mark()
        self._checked = clock()

    def __bool__(self) -> bool:
        return bool(self._records)

    @property
    def edition(self) -> object:
        """The same object for as long as the same keys are in force."""
        self._refresh()
        return self._records

    def client(self, key: str) -> Client | None:
        """Whose key this is. Every record is compared, and each in constant time."""
        return self.holder(digest(key))

    def holder(self, hashed: str) -> Client | None:
        """Whose key has this hash."""
        self._refresh()
        found: KeyRecord | None = None
        for record in self._records:
            if hmac.compare_digest(record.hash, hashed):
                found = record
        if found is None:
            return None
        return Client(
            name=found.name, scopes=frozenset(found.scopes), local_only=found.local_only, priority=found.priority
        )

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
            records = read(self._path)
        except KeyFileError as error:
            logger.error("%s; the keys read before stay in force", error)
            return
        if not records:
            logger.warning("%s holds no keys any more: nobody is let in until `hostler keys add NAME`", self._path)
        self._records = records

    def _mark(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size
