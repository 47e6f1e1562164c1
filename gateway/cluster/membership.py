"""Which gateways the cluster has: each reports itself every few seconds, signed with the cluster's token."""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import msgspec

from hostler.gateway.cluster.rounds import Rounds
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Script, Store, StoreAway
from hostler.gateway.cluster_settings import is_host_url
from hostler.gateway.cluster_view import ConfigurationState
from hostler.supervisor.tls import certificate_context

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: How often a member reports itself, and after which silence it is gone, in seconds.
HEARTBEAT_S, LIFETIME_S = 2.0, 6.0
_CHANNEL = "members"
#: Gateways whose start is remembered, at most.
_MAX_STARTS = 1000

#: Reports the member KEYS[2]. Returns the record that was there before, and with ARGV[5], which the keys of records start with,
#: those of all that are alive. A member without a record leaves.
REPORT = Script(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local index, id, record, lifetime = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local known = redis.call('ZSCORE', index, id)
if record == '' then
    redis.call('ZREM', index, id)
    redis.call('DEL', KEYS[2])
    redis.call('PUBLISH', ARGV[4], '-' .. id)
    return {''}
end
local before = redis.call('GET', KEYS[2])
redis.call('SET', KEYS[2], record, 'PX', lifetime)
redis.call('ZADD', index, now, id)
redis.call('PEXPIRE', index, lifetime)
redis.call('ZREMRANGEBYSCORE', index, '-inf', now - lifetime)
redis.call('PUBLISH', ARGV[4], known and '' or id)
local records = {before or ''}
if ARGV[5] == '' then return records end
for _, each in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    local found = redis.pcall('GET', ARGV[5] .. each)
    if type(found) == 'string' then records[#records + 1] = found end
end
return records
""",
    types=("zset", "string"),
)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway of the cluster. `id` stays the same over its restarts; `since` is its start, in seconds since the epoch. `url`
    is where others reach it, if they do, and `certificate` the one that it has there, as PEM."""

    id: str
    name: str
    version: str
    listen: tuple[str, ...] = ()
    since: float = 0.0
    configuration: tuple[ConfigurationState, ...] = ()
    url: str | None = None
    certificate: str | None = None


class Signer:
    """Signs the records of members: joining takes the cluster's token, not only write access to the store.

    Without a token records carry no signature, and those that carry one are not accepted.
    """

    def __init__(self, token: str | None, cluster: str) -> None:
        self._key = None if token is None else hashlib.sha256(f"{cluster}\0{token}".encode()).digest()

    def signed(self, content: bytes) -> bytes:
        return self._signature(content) + b"." + content

    def opened(self, record: bytes) -> bytes | None:
        """The content of a record; `None` if a stranger wrote it."""
        signature, _, content = record.partition(b".")
        return content if hmac.compare_digest(signature, self._signature(content)) else None

    def decoded(self, record: bytes, kind: type[_T]) -> _T | None:
        """The value of a record; `None` if a stranger or another release wrote it."""
        content = self.opened(record)
        try:
            return None if content is None else msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, RecursionError):
            return None

    def _signature(self, content: bytes) -> bytes:
        return b"" if self._key is None else hmac.digest(self._key, content, "sha256").hex().encode()


async def send_report(
    store: Store, index: str, kind: str, member_id: str, record: bytes, channel: str, *, others: bool
) -> list[bytes]:
    """Report the member of this kind. Returns what `REPORT` does, with the records of `others` or without; without a record it
    leaves. Raises `StoreAway`."""
    found: list[bytes] = await store.run_script(
        REPORT, [index, f"{kind}:{member_id}"], member_id, record, int(LIFETIME_S * 1000), store.prefix + channel,
        f"{store.prefix}{kind}:" if others else "", limit_s=BACKGROUND_LIMIT_S,
    )  # fmt: skip
    return found


class Membership:
    """Reports this gateway and knows the others. While the store is away, the last known members stay, and as long after it is
    back as they may take to report themselves, since it may have come back empty.

    `twin` is another process that reports itself with this gateway's identity: a copy of its machine, which has its file.
    It is gone once this gateway has found only its own records for `LIFETIME_S`.
    """

    scripts = (REPORT,)

    def __init__(
        self, store: Store, signer: Signer, own: Member, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.own = own
        self._clock = clock
        self.members: dict[str, Member] = {own.id: own}
        self.twin: Member | None = None
        self._alone_since: float | None = None
        self._reported = False
        self.store = store
        self._signer = signer
        self._record = signer.signed(msgspec.json.encode(own))
        self._rounds = Rounds(HEARTBEAT_S)
        self._refused: set[bytes] = set()
        self._started: dict[str, float] = {}
        self._on_change: list[Callable[[], None]] = []
        self._connected_at = clock()
        self._left: set[str] = set()
        store.on_connect(self._on_connect)
        store.subscribe(_CHANNEL, self._on_message)

    async def run(self) -> None:
        """Report this member until cancelled, and then that it leaves."""
        try:
            while True:
                try:
                    before, *records = await self._report(self._record)
                    self._look_for_twin(before)
                    self._reported = True
                    self._see(records)
                except StoreAway:
                    pass
                await self._rounds.next()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await self._report(b"")
                except StoreAway:
                    pass

    async def _report(self, record: bytes) -> list[bytes]:
        return await send_report(self.store, "gateways", "gateway", self.own.id, record, _CHANNEL, others=True)

    def report(self, own: Member) -> None:
        """Report this gateway anew, now: something of it has changed."""
        self.own = own
        self.members = {**self.members, self.own.id: self.own}
        self._record = self._signer.signed(msgspec.json.encode(self.own))
        self._rounds.soon()

    def _look_for_twin(self, before: bytes) -> None:
        """`before` is the record that this report has replaced: this gateway's own, or what was there before its start."""
        found = self._member(before) if self._reported and before else None
        if found is None:  # expired, or removed by a twin that has left: it says nothing of one that is there
            self._alone_since = None
            return
        if found.since == self.own.since:
            now = self._clock()
            self._alone_since = now if self._alone_since is None else self._alone_since
            if self.twin is not None and now - self._alone_since >= LIFETIME_S:
                logger.info("gateway %s, which had the same identity as this one, is gone", self.twin.name)
                self.twin = None
            return
        self._alone_since = None
        before_that, self.twin = self.twin, found
        if before_that is None or before_that.since != found.since:
            logger.error("%s", self.problem)

    @property
    def problem(self) -> str:
        """What an operator should know of `twin`; empty without one."""
        if self.twin is None:
            return ""
        return (
            f"gateway {self.twin.name} at {', '.join(self.twin.listen)} has the same identity, {self.own.id}, as this one: "
            "one of their machines is a copy of the other; delete the file cluster-member in the state directory of one "
            "of them and restart it"
        )

    def _see(self, records: list[bytes]) -> None:
        found: dict[str, Member] = {self.own.id: self.own}
        refused = set()
        for record in records:
            member = self._member(record)
            if member is None:
                refused.add(record)
            elif member.id != self.own.id:
                found[member.id] = self._with_own_address(member)
        if refused - self._refused:
            logger.warning(
                "a member with another token, or of another release, reports itself in the store; it is ignored"
            )
        self._refused = refused
        if self._clock() - self._connected_at < LIFETIME_S:
            found = {id_: each for id_, each in self.members.items() if id_ not in self._left} | found
        if found == self.members:
            return
        for each in found.keys() - self.members.keys():
            logger.info("gateway %s joined the cluster", found[each].name)
        for each in self.members.keys() - found.keys():
            logger.info("gateway %s left the cluster", self.members[each].name)
        self.members = found
        self._left &= found.keys()
        for listener in self._on_change:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when other members have come, gone or changed."""
        self._on_change.append(listener)

    def _with_own_address(self, member: Member) -> Member:
        """The member, without an address where nothing can be asked, or of an earlier start: that of a record that was written
        again may be a stranger's."""
        is_old = member.since < self._started.get(member.id, 0.0)
        if not is_old:
            self._started[member.id] = member.since
            if len(self._started) > _MAX_STARTS:
                del self._started[next(iter(self._started))]
        if is_old or not _is_usable(member.url, member.certificate):
            return msgspec.structs.replace(member, url=None, certificate=None)
        return member

    def _member(self, record: bytes) -> Member | None:
        return self._signer.decoded(record, Member)

    def _on_connect(self) -> None:
        self._connected_at = self._clock()
        self._left.clear()
        self._rounds.soon()

    def _on_message(self, member: bytes) -> None:
        """A member came, or left (with a minus before its id); ordinary reports are empty."""
        id_ = member.removeprefix(b"-").decode("utf-8", "replace")
        if not id_ or id_ == self.own.id:
            return
        if member.startswith(b"-") and id_ in self.members:
            self._left.add(id_)
        self._rounds.soon()


@functools.lru_cache(maxsize=256)  # each record is seen every few seconds, and a certificate takes a while
def _is_usable(url: str | None, certificate: str | None) -> bool:
    """Whether a gateway can be asked there, as far as its address and its certificate tell."""
    try:
        if certificate is not None:
            certificate_context(certificate)
    except (ssl.SSLError, ValueError):
        return False
    return url is None or is_host_url(url)
