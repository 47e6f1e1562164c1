"""A supervisor's part in a cluster: it reports its host, so that gateways use it without an entry in their files."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio

from hostler import __version__
from hostler.gateway.cluster.certificate_file import CertificateFile
from hostler.gateway.cluster.hosts import HostKeys, HostRecord, HostReporter
from hostler.gateway.cluster.identity import Identity
from hostler.gateway.cluster.membership import HEARTBEAT_S
from hostler.gateway.cluster.shared_configuration import SharedConfiguration
from hostler.gateway.cluster.store import Store
from hostler.gateway.cluster_settings import ClusterSettings, store_address
from hostler.gateway.host_address import announced_url, unreachable_reason
from hostler.gateway.network_card import network_card
from hostler.gateway.shared_files import Apply
from hostler.gateway.wake_settings import WakeSettings
from hostler.supervisor.config import SupervisorSettings

logger = logging.getLogger(__name__)


#: How often a host looks for its own address once it has one, in seconds.
_ADDRESS_S = 10.0


class _Address(NamedTuple):
    """Where gateways reach a host, with which certificate, and how they wake it."""

    url: str
    certificate: str | None
    wake: WakeSettings | None


class HostMember:
    """`token` is what gateways of the cluster send. `run` until cancelled, then `close`. `state` is where a file of this name
    is kept, `generation` the supervisor's. `apply_profiles` uses the profiles that members share, if it takes them."""

    def __init__(
        self,
        settings: ClusterSettings,
        supervisor: SupervisorSettings,
        *,
        token: str,
        state: Callable[[str], Path],
        generation: int = 0,
        apply_profiles: Apply | None = None,
    ) -> None:
        self._generation = generation
        self._settings = settings
        self._supervisor = supervisor
        self._since = round(time.time(), 3)
        self._identity = Identity(state("cluster-host"))
        self._warned = False
        self._address: _Address | None = None
        tls = supervisor.tls
        self.certificate = None if tls is None else CertificateFile(tls.cert, tls.key)
        keys = HostKeys(token, settings.name)
        self.token = keys.token(self._identity.id)
        self._store = Store(
            store_address(settings.store),
            name=settings.name,
            scripts=(*HostReporter.scripts, *SharedConfiguration.scripts),
            clock=time.monotonic,
            wall=time.time,
        )
        self._reporter = HostReporter(self._store, keys, self._identity.id, self._record)
        self._shared = SharedConfiguration(
            self._store, settings, token, state=state, clock=time.monotonic, on_state=self._reporter.report
        )
        if apply_profiles is not None:
            self._shared.follow("profiles", apply_profiles)

    async def run(self) -> None:
        if (reason := unreachable_reason(self._settings, self._supervisor)) is not None:
            logger.warning("this host does not join cluster %s: %s; set cluster.url", self._settings.name, reason)
            return
        async with self._store.running(), anyio.create_task_group() as parts:
            parts.start_soon(self._look_for_address)
            parts.start_soon(self._reporter.run)
            parts.start_soon(self._shared.run)

    def close(self) -> None:
        self._identity.close()

    def _record(self) -> HostRecord | None:
        """What is reported now; `None` if nothing could reach it."""
        if self._address is None:
            return None
        return HostRecord(
            id=self._identity.id,
            name=self._settings.member or socket.gethostname().partition(".")[0],
            version=__version__,
            url=self._address.url,
            certificate=self._address.certificate,
            since=self._since,
            generation=self._generation,
            configuration=self._shared.states,
            wake=self._address.wake,
        )

    async def _look_for_address(self) -> None:
        """Keep up with where the host is reached, apart from its reports, which wait neither for names nor for files."""
        while True:
            found = await self._find_address()
            if found != self._address:
                self._address = found
                self._reporter.report()
            await anyio.sleep(HEARTBEAT_S if found is None else _ADDRESS_S)

    async def _find_address(self) -> _Address | None:
        url = await announced_url(self._settings, self._supervisor)
        if url is None:
            return None
        certificate = None if self.certificate is None else await anyio.to_thread.run_sync(self.certificate.read)
        return _Address(url, certificate, await self._wake(url))

    async def _wake(self, url: str) -> WakeSettings | None:
        """How the machine is woken: as configured, or, if it puts itself to sleep, by the card that has its address."""
        if self._settings.wake is not None or self._supervisor.sleep is None:
            return self._settings.wake
        wake = await anyio.to_thread.run_sync(network_card, urlsplit(url).hostname or "")
        if wake is None and not self._warned:
            self._warned = True
            logger.warning(
                "gateways of cluster %s cannot wake this machine: no network card has the address of %s; set cluster.wake",
                self._settings.name,
                url,
            )
        return wake
