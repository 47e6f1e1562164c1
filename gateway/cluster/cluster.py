"""This gateway's part in a cluster: its connection to the store, and what is shared through it."""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from hostler import __version__
from hostler.gateway.auth.middleware import KeyThrottle
from hostler.gateway.auth.sessions import Sessions
from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.backends.cost import spending_file
from hostler.gateway.backends.hop import Hop
from hostler.gateway.cluster.announcements import Announcements
from hostler.gateway.cluster.breaker_hints import BreakerHints
from hostler.gateway.cluster.certificate_file import CertificateFile
from hostler.gateway.cluster.gateway_names import GatewayNames
from hostler.gateway.cluster.hosts import HostDirectory, HostKeys, HostRecord
from hostler.gateway.cluster.identity import Identity
from hostler.gateway.cluster.key_budgets import SharedKeyUsage
from hostler.gateway.cluster.ledger import Ledger
from hostler.gateway.cluster.membership import HEARTBEAT_S, Member, Membership, Signer
from hostler.gateway.cluster.peer_gateways import PeerGateways
from hostler.gateway.cluster.shared_configuration import SharedConfiguration
from hostler.gateway.cluster.shared_conversations import SharedConversations
from hostler.gateway.cluster.shared_history import SharedHistory
from hostler.gateway.cluster.shared_hosts import SharedHosts
from hostler.gateway.cluster.shared_log import SharedLog
from hostler.gateway.cluster.shared_requests import SharedRequests
from hostler.gateway.cluster.shared_responses import SharedResponses
from hostler.gateway.cluster.shared_sessions import SharedSessions
from hostler.gateway.cluster.shared_throttle import SharedThrottle
from hostler.gateway.cluster.spending import SharedSpending
from hostler.gateway.cluster.store import Store
from hostler.gateway.cluster_settings import ClusterSettings, store_address
from hostler.gateway.cluster_view import (
    ClusterHost,
    ClusterMember,
    ClusterView,
    ConfigurationKind,
    ConfigurationState,
    GatewayHost,
)
from hostler.gateway.conversation_places import ConversationPlaces
from hostler.gateway.events import Bus
from hostler.gateway.gateway_settings import GatewaySettings
from hostler.gateway.host_address import gateway_url
from hostler.gateway.in_flight import RequestView
from hostler.gateway.joined_host import JoinedHost, is_configured, named_hosts
from hostler.gateway.key_usage import usage_file
from hostler.gateway.response_store import ResponseStore
from hostler.gateway.shared_files import Apply
from hostler.gateway.telemetry.history import History
from hostler.supervisor.config import TLSSettings

#: How long a host that joined is known to be one of the file's after their supervisors were last the same, in seconds.
_SAME_S = 30.0
#: How often a gateway looks for its own address once it has one, in seconds.
_ADDRESS_S = 10.0


class Cluster:
    """Everything that this gateway shares with others. `run` until cancelled, then `close`.

    `token` is the cluster's, `listen` are this gateway's addresses, with the certificate of `tls`, and `state` is where a
    file of this name is kept. `peers` passes requests on to the other gateways.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        *,
        token: str | None,
        listen: tuple[str, ...],
        tls: TLSSettings | None,
        state: Callable[[str], Path],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._identity = Identity(state("cluster-member"))
        self.store = Store(
            store_address(settings.store),
            name=settings.name,
            scripts=(
                *Membership.scripts,
                *Ledger.scripts,
                *SharedSessions.scripts,
                *SharedResponses.scripts,
                *HostDirectory.scripts,
                *SharedLog.scripts,
                *SharedConfiguration.scripts,
            ),
            clock=clock,
            wall=wall,
        )
        self._host_keys = None if token is None else HostKeys(token, settings.name)
        self._host_file = state("cluster-hosts.json")
        self._joined: dict[str, JoinedHost] = {}
        self._directory: HostDirectory | None = None
        self._shared_hosts: SharedHosts | None = None
        self.ledger = Ledger(self.store, self._identity.id, file=state("cluster-budgets.json"), clock=clock, wall=wall)
        own = Member(
            id=self._identity.id,
            name=settings.member or socket.gethostname(),
            version=__version__,
            listen=listen,
            since=round(wall(), 3),
        )
        self._signer = Signer(token, settings.name)
        self._secret = hashlib.sha256(f"addresses\0{settings.name}\0{token or ''}".encode()).digest()
        self._clock = clock
        self.membership = Membership(self.store, self._signer, own)
        self._shared = SharedConfiguration(
            self.store,
            settings,
            token,
            state=state,
            clock=clock,
            on_state=lambda: self.membership.report(
                msgspec.structs.replace(self.membership.own, configuration=self._shared.states)
            ),
        )
        self._listen = listen
        self._certificate = None if tls is None else CertificateFile(tls.cert, tls.key)
        self.peers = PeerGateways(
            own.id,
            lambda: self.membership.members,
            is_trusted=token is not None,
            names=GatewayNames(state("cluster-gateways.json")),
        )
        self.membership.on_change(self.peers.on_members)
        self._announcements = Announcements(self.store, self._signer, own.id)
        self._runs: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self.ledger.run,
            self.membership.run,
            self._announcements.run,
            self._shared.run,
            self._report_address,
            self.peers.run,
        ]

    def spending(self, settings: GatewaySettings) -> SharedSpending:
        """The daily spending limit of all gateways. To be called once, before `run`."""
        return SharedSpending(spending_file(settings.spending), settings.spending.daily_limit, self.ledger)

    def key_usage(self, settings: GatewaySettings) -> SharedKeyUsage:
        """The limits of keys over all gateways. To be called once, before `run`."""
        has_limit = settings.spending.daily_limit is not None
        return SharedKeyUsage(usage_file(settings), self.ledger, has_daily_limit=has_limit)

    @property
    def gateway(self) -> str:
        """The name of this gateway."""
        return self.membership.own.name

    def share_requests(
        self,
        own: Callable[[], Sequence[RequestView]],
        cancel_own: Callable[[str], Awaitable[int]],
        own_hosts: Callable[[], Sequence[GatewayHost]],
    ) -> SharedRequests:
        """The requests in flight and the hosts of other gateways, which see those that `own` and `own_hosts` return. To be
        called before `run`."""
        hosts = self._shared_hosts = SharedHosts(
            self._announcements, own=own_hosts, gateways=lambda: self.membership.members, clock=self._clock
        )
        shared = SharedRequests(
            self._announcements,
            own_id=self.membership.own.id,
            own=own,
            cancel_own=cancel_own,
            gateways=lambda: self.membership.members,
            clock=self._clock,
            announce_more=hosts.announce,
        )
        self._runs.append(shared.run)
        return shared

    def share_history(self, history: History, bus: Bus) -> None:
        """Past requests of all gateways, unless the settings keep them out of the store. To be called before `run`."""
        if self._settings.history:
            own = self.membership.own.id, self.membership.own.name
            shared = SharedHistory(self.store, self._signer, own, history, bus, wall=self.ledger.wall)
            self._runs.append(shared.run)

    def share_conversations(self, entries: Mapping[str, BackendSettings]) -> ConversationPlaces:
        """Which hosts hold which conversations. To be called before `run`."""
        own = self.membership.own.id, self.membership.own.name
        places = ConversationPlaces(entries, secret=self._secret, wall=self.ledger.wall)
        shared = SharedConversations(self.store, self._signer, own, places, wall=self.ledger.wall)
        self._runs.append(shared.run)
        return places

    def share_logins(self, sessions: Sessions | None, throttle: KeyThrottle) -> None:
        """Sessions and invalid keys of all gateways. To be called before `run`."""
        if sessions is not None:
            self._runs.append(SharedSessions(self.store, self._signer, sessions, self.ledger.wall).run)
        self._runs.append(SharedThrottle(throttle, self._announcements, self._secret).run)

    def share_responses(self, responses: ResponseStore, max_age_s: float) -> None:
        """Stored responses of all gateways. To be called before `run`."""
        shared = SharedResponses(self.store, self._signer, self._announcements, responses, max_age_s=max_age_s)
        self._runs.append(shared.run)

    def follow_configuration(self, kind: ConfigurationKind, apply: Apply) -> None:
        """Have `apply` use what members share of a kind. To be called before `run`."""
        self._shared.follow(kind, apply)

    def follow_hosts(
        self,
        configured: Mapping[str, BackendSettings],
        generations: Callable[[], Mapping[str, int]],
        is_reachable: Callable[[str], bool],
        on_change: Callable[[Sequence[JoinedHost]], None],
    ) -> None:
        """Hosts that join the cluster, but for those that are `configured`: at the same address, or at another one where
        the same supervisor answers, with the same of `generations`. Without a token there are none. To be called before
        `run`; what was known before is reported at once."""
        keys = self._host_keys
        if keys is None:
            return

        same: dict[str, float] = {}

        def is_known(record: HostRecord) -> bool:
            if is_configured(record.url, configured):
                return True
            now = self._clock()
            if record.generation and record.generation in generations().values():
                same[record.id] = now
            # After a restart of its supervisor the two ways to it do not learn of that at the same moment.
            return now - same.get(record.id, -math.inf) <= _SAME_S

        def on_hosts(fresh: Mapping[str, HostRecord]) -> None:
            names = named_hosts(((each.id, each.name) for each in fresh.values()), configured)
            self._joined = {
                host_id: JoinedHost(
                    name=name,
                    url=fresh[host_id].url.rstrip("/"),
                    token=keys.token(host_id),
                    certificate=fresh[host_id].certificate,
                    wake=fresh[host_id].wake,
                )
                for host_id, name in names.items()
            }
            on_change([*self._joined.values()])

        self._directory = HostDirectory(
            self.store,
            keys,
            file=self._host_file,
            clock=self._clock,
            is_reachable=lambda host_id: (host := self._joined.get(host_id)) is not None and is_reachable(host.name),
            on_change=on_hosts,
            is_known=is_known,
        )
        self._directory.restore()
        self._runs.append(self._directory.run)

    def share_breakers(self, hops: Mapping[str, Hop], entries: Mapping[str, BackendSettings], bus: Bus) -> None:
        """Circuits that open at other gateways. To be called before `run`."""
        hints = BreakerHints(self._announcements, hops, entries, clock=self._clock, wall=self.ledger.wall)
        bus.listen(hints.on_event)

    def view(self) -> ClusterView:
        """The cluster as this gateway knows it."""
        state, own = self.store.state, self.membership.own
        return ClusterView(
            name=self._settings.name,
            store=self._settings.shown_store,
            connected=state.connected,
            reason=state.reason,
            since=state.since,
            gateways=tuple(
                ClusterMember(
                    id=each.id, name=each.name, version=each.version, listen=each.listen, since=each.since,
                    own=each.id == own.id, url=each.url, configuration=each.configuration,
                )
                for each in sorted(self.membership.members.values(), key=lambda each: (each.name, each.id))
            ),
            hosts=tuple(
                ClusterHost(
                    id=host_id, name=host.name, url=host.url, version=directory.hosts[host_id].version,
                    since=directory.hosts[host_id].since, configuration=directory.hosts[host_id].configuration,
                )
                for host_id, host in sorted(self._joined.items(), key=lambda item: item[1].name)
            ) if (directory := self._directory) is not None else (),
            elsewhere=() if self._shared_hosts is None else self._shared_hosts.elsewhere(),
            problems=(*filter(None, (self.membership.problem,)), *self._refusals()),
            calls=dict(self.store.calls),
        )  # fmt: skip

    async def _report_address(self) -> None:
        """Say where other gateways reach this one, which may change, as its certificate may."""
        while True:
            url = await gateway_url(self._settings, self._listen, tls=self._certificate is not None)
            certificate = None
            if self._certificate is not None and self._settings.gateway_url is None:
                certificate = await anyio.to_thread.run_sync(self._certificate.read)
            own = self.membership.own
            if (own.url, own.certificate) != (url, certificate):
                self.membership.report(msgspec.structs.replace(own, url=url, certificate=certificate))
            await anyio.sleep(HEARTBEAT_S if url is None else _ADDRESS_S)

    def _refusals(self) -> Iterator[str]:
        """Why members cannot use what is shared."""
        hosts = () if self._directory is None else self._directory.hosts.values()
        members = [(f"gateway {each.name}", each.configuration) for each in self.membership.members.values()]
        members += [(f"host {each.name}", each.configuration) for each in hosts]
        for name, states in sorted(members):
            for state in states:
                if state.reason:
                    yield _refusal(name, state)

    async def run(self) -> None:
        async with self.store.running(), anyio.create_task_group() as parts:
            for run in self._runs:
                parts.start_soon(run)

    def close(self) -> None:
        self._identity.close()


def _refusal(member: str, state: ConfigurationState) -> str:
    if not state.refused:
        what = f" cannot use the shared {state.kind} of version {state.version} anew" if state.version else ""
        return f"{member}{what}: {state.reason}"
    rest = f"version {state.version} stays in use" if state.version else "it uses none"
    return f"{member} cannot use the shared {state.kind} of version {state.refused}: {state.reason}; {rest}"
