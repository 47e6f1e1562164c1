"""The configuration that a cluster's members share: versioned documents in the store, which each member applies or refuses."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import anyio.to_thread
import msgspec

from hostler.gateway.cluster.membership import HEARTBEAT_S, Signer
from hostler.gateway.cluster.rounds import Rounds
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Script, Store, StoreAway
from hostler.gateway.cluster_view import ConfigurationKind, ConfigurationState
from hostler.gateway.shared_files import Apply, Refused, one_line
from hostler.supervisor.state_store import JsonStore

logger = logging.getLogger(__name__)

#: Bytes of a record in the store, at most: a text of 512 KiB as JSON, with its signature.
MAX_RECORD_BYTES = 4 * 1024 * 1024
#: How long a document stays in the store without any member that has it, in seconds. Members keep it, and put it back.
LIFETIME_S = 7 * 24 * 3600
#: When a document that was refused is tried again, in seconds: a missing file may have arrived, or the member's own file may
#: have been corrected.
RETRY_S = 10.0

#: The channel on which the kind of a new document is said.
CHANNEL = "configuration"

_CURRENT = """
local function current(key, max)
    local kind = redis.call('TYPE', key).ok
    if kind == 'none' then return '' end
    if kind ~= 'string' or redis.call('STRLEN', key) > tonumber(max) then return 'damaged' end
    return redis.sha1hex(redis.call('GET', key))
end
"""
#: The SHA-1 of the record at KEYS[1], and the record, unless it is the one with this SHA-1, which then stays.
READ = Script(
    _CURRENT
    + """
local found = current(KEYS[1], ARGV[2])
if found == '' or found == 'damaged' then return {found, ''} end
if found ~= ARGV[1] then return {found, redis.call('GET', KEYS[1])} end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {found, ''}
"""
)
#: Replaces the record at KEYS[1] if it still has this SHA-1. Whether it had.
WRITE = Script(
    _CURRENT
    + """
if current(KEYS[1], ARGV[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[3])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
"""
)


class SharedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A version of what is shared of a kind: `by` whom, and when (`at`, in seconds since the epoch)."""

    kind: ConfigurationKind
    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    at: float
    by: str
    text: str

    @property
    def order(self) -> tuple[float, int, str]:
        """The newest document, which was published last, is the greatest one. Its version says less: it counts from 1 again
        where the store has lost those before and no member was there to tell."""
        return self.at, self.version, hashlib.sha256(self.text.encode()).hexdigest()


class DocumentStore:
    """The documents in the store. Only those that the cluster's token has signed are believed."""

    scripts = (READ, WRITE)

    def __init__(self, store: Store, token: str, cluster: str) -> None:
        self._store = store
        self._signer = Signer(token, f"{cluster}\0configuration")

    def signed(self, document: SharedDocument) -> bytes:
        return self._signer.signed(msgspec.json.encode(document))

    def opened(self, kind: ConfigurationKind, record: bytes) -> SharedDocument | None:
        """The document of a record; `None` if a stranger wrote it, or if it is another kind's."""
        found = self._signer.decoded(record, SharedDocument)
        return found if found is not None and found.kind == kind else None

    async def read(self, kind: ConfigurationKind, known: bytes = b"") -> tuple[str, bytes]:
        """What stands in the store: a mark of it for `write`, and the record unless it is `known`. Raises `StoreAway`."""
        mark, record = await self._store.run_script(
            READ, [_key(kind)], _mark(known), MAX_RECORD_BYTES, LIFETIME_S, limit_s=BACKGROUND_LIMIT_S
        )
        return mark.decode(), record

    async def write(self, kind: ConfigurationKind, record: bytes, instead: str) -> bool:
        """Write a record instead of what had this mark. Whether that was still there. Raises `StoreAway`."""
        written: int = await self._store.run_script(
            WRITE,
            [_key(kind)],
            instead,
            MAX_RECORD_BYTES,
            LIFETIME_S,
            record,
            self._store.prefix + CHANNEL,
            kind,
            limit_s=BACKGROUND_LIMIT_S,
        )
        return written == 1


def _key(kind: ConfigurationKind) -> str:
    return f"configuration:{kind}"


def _mark(record: bytes) -> str:
    return hashlib.sha1(record, usedforsecurity=False).hexdigest() if record else ""


class _Version(NamedTuple):
    """A document, and its record as it was signed: a later release may have written more into it."""

    document: SharedDocument
    record: bytes


class _Kept(msgspec.Struct, frozen=True):
    """Records as they were signed: the newest one that is known, and the one in use."""

    newest: bytes = b""
    applied: bytes = b""


class ConfigurationFollower:
    """Follows the documents of a kind, and has `apply` use the newest one. `run` until cancelled.

    A document that is older than one that was known before is never applied; the store gets the newer one back. `file` keeps
    both over restarts. `on_state` is called when `state` has changed. After a change of the token the text stays in use that
    was signed with the old one, and `state` says so, until another one is.
    """

    def __init__(
        self,
        documents: DocumentStore,
        kind: ConfigurationKind,
        apply: Apply,
        *,
        file: Path,
        clock: Callable[[], float],
        on_state: Callable[[], None] = lambda: None,
    ) -> None:
        self.kind = kind
        self._documents = documents
        self._apply = apply
        self._clock = clock
        self._on_state = on_state
        self._file = JsonStore(file, _Kept, contents=f"shared {kind}", sync=True)
        kept = self._file.read() or _Kept()
        self._newest = self._version(kept.newest)
        self._applied = self._version(kept.applied)
        self._unbelieved = kept.applied if self._applied is None else b""
        self._tried: _Version | None = None
        self._retry_at: float | None = None
        self._damage = ""
        self._old: SharedDocument | None = None
        self._rounds = Rounds(HEARTBEAT_S)
        self.state = ConfigurationState(kind=kind, version=_number(self._applied))
        if self._unbelieved:
            reason = (
                f"the shared {kind} in use were signed with another token; publish them again with `hostler config push "
                f"{kind}`, or end their use with `hostler config remove {kind}`"
            )
            logger.error("%s", reason)
            self.state = ConfigurationState(kind=kind, version=0, reason=reason)

    def look(self) -> None:
        """Look at the store now."""
        self._rounds.soon()

    async def run(self) -> None:
        while True:
            await self._use()
            try:
                await self._exchange()
            except StoreAway:
                pass
            await self._use()
            await self._rounds.next()

    async def _exchange(self) -> None:
        """Take over what is newer in the store, and replace there what is not."""
        own = b"" if self._newest is None else self._newest.record
        mark, record = await self._documents.read(self.kind, own)
        if own and mark == _mark(own):
            self._damage = ""
            return
        found = self._version(record)
        if mark and found is None:
            self._report_damage(mark)
        if found is not None and (self._newest is None or found.document.order >= self._newest.document.order):
            self._newest = found
            await self._keep()
        elif own:
            if found is not None:
                self._report_old(found.document)
            await self._documents.write(self.kind, own, mark)

    async def _use(self) -> None:
        newest = self._newest
        if newest is None:
            return
        if newest == self._tried and (self._retry_at is None or self._clock() < self._retry_at):
            return
        first, self._tried, self._retry_at = newest != self._tried, newest, None
        try:
            note, reason = await self._apply(newest.document.text), ""
        except Refused as error:
            note, reason = "", one_line(str(error))
        except Exception:  # no request depends on it, and so no member
            logger.exception("shared %s of version %d: unhandled exception", self.kind, newest.document.version)
            note, reason = "", "an internal error, which this member's log has"
        if reason:
            self._retry_at = self._clock() + RETRY_S
            if first or reason != self.state.reason:
                logger.error("shared %s of version %d are refused: %s", self.kind, newest.document.version, reason)
        elif newest != self._applied or self.state.reason:
            logger.info(
                "shared %s of version %d by %s are in use", self.kind, newest.document.version, newest.document.by
            )
        if not reason and newest != self._applied:
            self._applied, self._unbelieved = newest, b""
            await self._keep()
        self._set_state(
            ConfigurationState(
                kind=self.kind,
                version=_number(self._applied),
                refused=newest.document.version if reason and newest != self._applied else 0,
                reason=reason,
                note=one_line(note),
            )
        )

    async def _keep(self) -> None:
        newest = b"" if self._newest is None else self._newest.record
        kept = _Kept(newest, self._unbelieved if self._applied is None else self._applied.record)
        await anyio.to_thread.run_sync(self._file.write, lambda: kept)

    def _version(self, record: bytes) -> _Version | None:
        document = self._documents.opened(self.kind, record)
        return None if document is None else _Version(document, record)

    def _set_state(self, state: ConfigurationState) -> None:
        if state != self.state:
            self.state = state
            self._on_state()

    def _report_old(self, found: SharedDocument) -> None:
        """What was published with a clock behind, or has been written again, is no longer in the store then."""
        assert self._newest is not None
        if found != self._old:
            newest = self._newest.document
            logger.warning(
                "the shared %s of version %d by %s in the store are from before version %d by %s; they are replaced by that",
                self.kind, found.version, found.by, newest.version, newest.by,
            )  # fmt: skip
        self._old = found

    def _report_damage(self, mark: str) -> None:
        if mark != self._damage:
            logger.warning(
                "the shared %s in the store are damaged, or of another token; %s",
                self.kind,
                "they are ignored" if self._newest is None else "they are replaced by the last ones",
            )
        self._damage = mark


def _number(version: _Version | None) -> int:
    return 0 if version is None else version.document.version
