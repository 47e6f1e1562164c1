"""Sessions of the dashboard at all gateways of a cluster: a login at one of them is good at all, and so is a logout."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import anyio
import msgspec

from hostler.gateway.auth.sessions import LASTS_S, Sessions
from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, REQUEST_LIMIT_S, Script, Store, StoreAway

_CHANNEL, _HASH = "sessions", "sessions"
#: Ended sessions that are remembered, so that no gateway brings one back.
_MAX_ENDED = 10_000
#: How often expired sessions are removed from the store, in seconds.
_CLEAN_S = 600.0

#: Writes records by the hashes of their cookies. Those of begun sessions never replace what is there, which may be an end.
_WRITE = Script(
    """
for place = 2, #ARGV - 2, 3 do
    local name, record, ended = ARGV[place], ARGV[place + 1], ARGV[place + 2]
    if ended == '1' then
        redis.call('HSET', KEYS[1], name, record)
        redis.call('PUBLISH', ARGV[1], record)
    elseif redis.call('HSETNX', KEYS[1], name, record) == 1 then
        redis.call('PUBLISH', ARGV[1], record)
    end
end
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[#ARGV]))
return 1
""",
    types=("hash",),
)


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A session by the hashes of its cookie and its key, until a moment. Without a key it has ended."""

    session: str
    key: str
    until: float


class SharedSessions:
    """Keeps a gateway's sessions like those of the others. The store has hashes only, signed with the cluster's token."""

    scripts = (_WRITE,)

    def __init__(self, store: Store, signer: Signer, sessions: Sessions, wall: Callable[[], float]) -> None:
        self._store = store
        self._signer = signer
        self._sessions = sessions
        self._wall = wall
        self._ended: OrderedDict[str, _Record] = OrderedDict()
        self._unwritten: OrderedDict[str, _Record] = OrderedDict()
        self._wake, self._written = anyio.Event(), anyio.Event()
        self._synced = False
        store.on_connect(self._on_connect)
        store.subscribe(_CHANNEL, self._on_message)
        sessions.peers = self

    def began(self, session: str, key: str, lasts_s: float) -> None:
        """This gateway has begun a session."""
        self._write(_Record(session, key, self._wall() + lasts_s))

    def ended(self, session: str) -> None:
        """This gateway has ended a session."""
        record = _Record(session, "", self._wall() + LASTS_S)
        self._remember(record)
        self._write(record)

    async def published(self) -> None:
        """Wait until the others know what has changed, or for as long as a request may wait."""
        if self._store.connected:
            with anyio.move_on_after(REQUEST_LIMIT_S):
                while self._unwritten:
                    await self._written.wait()

    async def run(self) -> None:
        """Write and read until cancelled."""
        while True:
            with anyio.move_on_after(_CLEAN_S) as pause:
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                if self._store.connected:
                    if not self._synced:
                        self._unwritten = OrderedDict((each.session, each) for each in self._known())
                    await self._flush()
                    if not self._synced or pause.cancelled_caught:
                        await self._read()
                    self._synced = True
            except StoreAway:
                continue

    def _write(self, record: _Record) -> None:
        self._unwritten[record.session] = record
        self._wake.set()

    def _known(self) -> list[_Record]:
        """All that this gateway knows: what it could not write, or what the store has lost."""
        now = self._wall()
        own = [_Record(name, key, now + left_s) for name, key, left_s in self._sessions.known()]
        return [*own, *self._ended.values(), *self._unwritten.values()]

    async def _flush(self) -> None:
        while self._unwritten:
            batch = [self._unwritten.popitem(last=False)[1] for _ in range(min(100, len(self._unwritten)))]
            words = [
                word
                for each in batch
                for word in (
                    each.session,
                    self._signer.signed(msgspec.json.encode(each)),
                    "" if each.key else "1",
                )
            ]
            try:
                await self._store.run_script(
                    _WRITE,
                    [_HASH],
                    self._store.prefix + _CHANNEL,
                    *words,
                    int(LASTS_S) + 60,
                    limit_s=BACKGROUND_LIMIT_S,
                )
            except BaseException:
                for each in batch:
                    self._unwritten.setdefault(each.session, each)
                raise
        written, self._written = self._written, anyio.Event()
        written.set()

    async def _read(self) -> None:
        """Take over what others have written, and remove what has expired, or was too much."""
        key = self._store.prefix + _HASH
        fields: dict[bytes, bytes] = await self._store.execute(
            "HGETALL", key, limit_s=BACKGROUND_LIMIT_S, types=((key, "hash"),)
        )
        records = {name: self._signer.decoded(value, _Record) for name, value in fields.items()}
        for record in sorted((each for each in records.values() if each is not None), key=lambda each: each.until):
            if record.until > self._wall():
                self._apply(record)
        known = {session for session, _, _ in self._sessions.known()} | self._ended.keys()
        useless = [name for name, record in records.items() if record is None or record.session not in known]
        if useless:
            await self._store.execute("HDEL", key, *useless, limit_s=BACKGROUND_LIMIT_S)

    def _on_connect(self) -> None:
        self._synced = False
        self._wake.set()

    def _on_message(self, message: bytes) -> None:
        record = self._signer.decoded(message, _Record)
        if record is not None:
            self._apply(record)

    def _apply(self, record: _Record) -> None:
        if not record.key:
            self._remember(record)
            self._sessions.remove(record.session)
        elif record.session in self._ended:
            self._write(self._ended[record.session])  # another gateway has brought it back
        else:
            self._sessions.add(record.session, record.key, min(LASTS_S, record.until - self._wall()))

    def _remember(self, record: _Record) -> None:
        self._ended[record.session] = record
        while self._ended and (len(self._ended) > _MAX_ENDED or next(iter(self._ended.values())).until <= self._wall()):
            self._ended.popitem(last=False)
