"""Which hosts the cluster has: their supervisors report themselves, signed with the cluster's token."""

from __future__ import annotations

import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import anyio
import msgspec

from hostler.gateway.cluster.membership import HEARTBEAT_S, LIFETIME_S, REPORT, Signer, send_report
from hostler.gateway.cluster.rounds import Rounds
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Script, Store, StoreAway
from hostler.gateway.cluster_settings import is_host_url
from hostler.gateway.cluster_view import ConfigurationState
from hostler.gateway.wake_settings import WakeSettings, wake_mistakes
from hostler.supervisor.state_store import JsonStore
from hostler.supervisor.tls import certificate_context

logger = logging.getLogger(__name__)

#: A host that neither reports itself nor can be reached for this time has left, in seconds.
FORGOTTEN_S = 60.0

#: The same for a host that can be woken, since its machine sleeps or is off.
WAKEABLE_S = 7 * 86_400.0

#: By how much the clocks of machines may differ, in seconds.
_SKEW_S = 60.0

_CHANNEL = "hosts"
_INDEX = "hosts"

#: The records of all members in an index, whose keys start with ARGV[1].
LIST = Script(
    """
local records = {}
for _, each in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local found = redis.pcall('GET', ARGV[1] .. each)
    if type(found) == 'string' then records[#records + 1] = found end
end
return records
""",
    types=("zset",),
)


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A host of the cluster. `id` stays the same over its restarts; `certificate` is the supervisor's, as PEM; `since` is its
    start, in seconds since the epoch, and `generation` that of its supervisor's status, 0 from earlier releases. `wake` is how
    its machine is woken."""

    id: str
    name: str
    version: str
    url: str
    certificate: str | None = None
    since: float = 0.0
    generation: int = 0
    configuration: tuple[ConfigurationState, ...] = ()
    wake: WakeSettings | None = None


class HostKeys:
    """What follows from the cluster's token for its hosts: their records' signatures, and the token of each."""

    def __init__(self, token: str, cluster: str) -> None:
        self.signer = Signer(token, f"{cluster}\0hosts")  # a gateway's record is none of a host
        self._key = hashlib.sha256(f"{cluster}\0tokens\0{token}".encode()).digest()

    def token(self, host_id: str) -> str:
        """What the host with this id expects of gateways. It says nothing of the cluster's token, or of other hosts'."""
        return hmac.digest(self._key, host_id.encode(), "sha256").hex()


def opened_host(signer: Signer, record: bytes) -> HostRecord | None:
    """The host that a record in the store is about; `None` if a stranger wrote it, or if it cannot be read."""
    host = signer.decoded(record, HostRecord)
    try:
        if host is None or not is_host_url(host.url) or (host.wake is not None and any(wake_mistakes(host.wake))):
            return None
        if host.certificate is not None:
            certificate_context(host.certificate)
    except (ssl.SSLError, ValueError):
        return None
    return host


class _Beat(msgspec.Struct, frozen=True, array_like=True):
    """A sign of life: `id` and `since` as in the host's record, `at` by its own clock, in seconds since the epoch."""

    id: str
    since: float
    at: float


class HostReporter:
    """Reports a host while it is up. `own` returns its record, `None` while it has none.

    A machine that was copied has the identity of another host. Of two that report themselves, the one that comes later does
    not join, and says so, until the other one is gone; of two at once, the one that has started first. `twin` is the other.
    Only a process that is alive has new beats: a record that is merely written again, such as the host's own of before its
    last start, keeps none from joining.
    """

    scripts = (REPORT,)

    def __init__(
        self,
        store: Store,
        keys: HostKeys,
        own_id: str,
        own: Callable[[], HostRecord | None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wall = wall
        self._store = store
        self._signer = keys.signer
        self._id = own_id
        self._own = own
        self._rounds = Rounds(HEARTBEAT_S)
        self._reported = False
        self.twin: HostRecord | None = None
        store.on_connect(self._on_connect)

    async def run(self) -> None:
        """Report until cancelled, and then that it leaves."""
        try:
            while True:
                record = self._own()
                try:
                    if record is not None:
                        await self._join(record)
                except StoreAway:
                    pass
                await self._rounds.next()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    if self._reported:
                        await self._report(b"")
                except StoreAway:
                    pass

    async def _join(self, own: HostRecord) -> None:
        """Report this host, unless another one has its place."""
        if not self._reported:
            other = await self._other(own)
            if other is not None and other.url != own.url and await self._is_alive(own):
                self._see_twin(other)
                return
        await self._write_beat(own)
        before = await self._report(self._signer.signed(msgspec.json.encode(own)))
        found = opened_host(self._signer, before) if self._reported and before else None
        self._reported = True
        if found is None or found.since <= own.since:
            self.twin = None
            return
        self._see_twin(found)
        self._reported = False  # gateways believe the one that has started last

    async def _is_alive(self, own: HostRecord) -> bool:
        """Whether another process is at this host's place. It is none once its record has expired, or if nothing beats."""
        first: _Beat | None = None
        with anyio.move_on_after(LIFETIME_S + 1):
            while await self._other(own) is not None:
                beat = await self._beat()
                if beat is not None and beat.since != own.since and beat.at > own.since - _SKEW_S:
                    if first is not None and beat.at > first.at:
                        return True
                    first = first or beat
                await anyio.sleep(0.5)
        return False

    async def _beat(self) -> _Beat | None:
        record = await self._store.execute(
            "GET", self._beat_key, limit_s=BACKGROUND_LIMIT_S, types=((self._beat_key, "string"),)
        )
        beat = self._signer.decoded(record or b"", _Beat)
        return None if beat is None or beat.id != self._id else beat

    async def _write_beat(self, own: HostRecord) -> None:
        record = self._signer.signed(msgspec.json.encode(_Beat(self._id, own.since, self._wall())))
        await self._store.execute(
            "SET", self._beat_key, record, "PX", int(LIFETIME_S * 1000), limit_s=BACKGROUND_LIMIT_S
        )

    @property
    def _beat_key(self) -> str:
        return f"{self._store.prefix}host-beat:{self._id}"

    async def _other(self, own: HostRecord) -> HostRecord | None:
        """The record of another process at this host's place."""
        key = f"{self._store.prefix}host:{self._id}"
        record = await self._store.execute("GET", key, limit_s=BACKGROUND_LIMIT_S, types=((key, "string"),))
        found = opened_host(self._signer, record or b"")
        return None if found is None or found.since == own.since else found

    def _see_twin(self, found: HostRecord) -> None:
        if self.twin is None or self.twin.since != found.since:
            logger.error(
                "host %s at %s has the same identity, %s, as this one: one of their machines is a copy of the other, and "
                "gateways use the one that %s; delete the file cluster-host in the state directory of one of them and "
                "restart it",
                found.name,
                found.url,
                self._id,
                "has started last" if self._reported else "was there first",
            )
        self.twin = found

    async def _report(self, record: bytes) -> bytes:
        """Returns the record that was there before."""
        (before,) = await send_report(self._store, _INDEX, "host", self._id, record, _CHANNEL, others=False)
        return before

    def report(self) -> None:
        """Report the host now: something of it has changed."""
        self._rounds.soon()

    def _on_connect(self) -> None:
        """While the store was away, another one may have taken this host's place."""
        self._reported = False
        self._rounds.soon()


class _Known(msgspec.Struct, frozen=True):
    """The records as they were signed."""

    records: tuple[bytes, ...] = ()


class HostDirectory:
    """The hosts that have reported themselves. `on_change` is called when they change, or when those that a file names as
    well do: `is_known` says which. `is_reachable` says whether this gateway reaches the host with an id.

    While the store is away, all hosts stay, and `file` keeps them over restarts. Otherwise one is dropped that has neither
    reported itself nor been reachable for `forgotten_s`, or `wakeable_s` if its machine can be woken.
    """

    scripts = (LIST,)

    def __init__(
        self,
        store: Store,
        keys: HostKeys,
        *,
        file: Path | None,
        clock: Callable[[], float],
        is_reachable: Callable[[str], bool],
        on_change: Callable[[Mapping[str, HostRecord]], None],
        is_known: Callable[[HostRecord], bool] = lambda _: False,
        forgotten_s: float = FORGOTTEN_S,
        wakeable_s: float = WAKEABLE_S,
    ) -> None:
        self._store = store
        self._signer = keys.signer
        self._clock = clock
        self._is_reachable = is_reachable
        self._on_change = on_change
        self._is_known = is_known
        self._known: set[str] = set()
        self._forgotten_s = forgotten_s
        self._wakeable_s = wakeable_s
        self._file = JsonStore(file, _Known, contents="hosts of the cluster")
        self._signed: dict[str, bytes] = {}
        self._heard_at: dict[str, float] = {}
        self._refused: set[bytes] = set()
        self._rounds = Rounds(HEARTBEAT_S)
        self.hosts: dict[str, HostRecord] = {}
        store.on_connect(self._on_connect)
        store.subscribe(_CHANNEL, self._on_message)

    def restore(self) -> None:
        """The hosts that were known when this gateway was stopped."""
        self._see((self._file.read() or _Known()).records)

    async def run(self) -> None:
        """Follow what hosts report until cancelled."""
        while True:
            try:
                self._see(
                    await self._store.run_script(
                        LIST, [_INDEX], f"{self._store.prefix}host:", limit_s=BACKGROUND_LIMIT_S
                    )
                )
            except StoreAway:
                pass
            await self._rounds.next()

    def _see(self, records: Iterable[bytes]) -> None:
        now, found, refused = self._clock(), dict(self.hosts), set()
        signed = dict(self._signed)
        opened = {record: self.hosts[host_id] for host_id, record in self._signed.items()}
        for record in records:
            # Most are those of the round before: certificates take a while.
            host = None if record in self._refused else opened.get(record) or opened_host(self._signer, record)
            if host is None:
                refused.add(record)
                continue
            if host.id in found and host.since < found[host.id].since:
                continue  # an old record that was written again: the host has been restarted since
            found[host.id], signed[host.id], self._heard_at[host.id] = host, record, now
        if refused - self._refused:
            logger.warning(
                "a host with another token, or of another release, reports itself in the store; it is ignored"
            )
        self._refused = refused
        for host_id in list(found):
            if self._is_reachable(host_id):
                self._heard_at[host_id] = now
            limit_s = self._forgotten_s if found[host_id].wake is None else self._wakeable_s
            if now - self._heard_at[host_id] > limit_s:
                del found[host_id], signed[host_id], self._heard_at[host_id]
        known = {host_id for host_id, host in found.items() if self._is_known(host)}
        if found == self.hosts and known == self._known:
            return
        self.hosts, self._signed, self._known = found, signed, known
        self._file.write(lambda: _Known(tuple(signed.values())))
        self._on_change({host_id: host for host_id, host in found.items() if host_id not in known})

    def _on_connect(self) -> None:
        """No host could report itself while the store was away, so that time does not count."""
        now = self._clock()
        self._heard_at = dict.fromkeys(self._heard_at, now)
        self._rounds.soon()

    def _on_message(self, host_id: bytes) -> None:
        """A host came or went; ordinary reports are empty."""
        if host_id:
            self._rounds.soon()
