"""What serving requests for models takes: the catalog, connections to backends, their hosts, and the chain."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup

from hostler import __version__
from hostler.adapters.errors import ShuttingDown
from hostler.gateway.auth.bind_policy import keys_as_decided, keys_in_force
from hostler.gateway.backends.cancellable_sleep import CancellableSleeps
from hostler.gateway.backends.chain import Chain
from hostler.gateway.backends.cost import SpendingTracker
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.registry import build_backends, chain_order, host_backend, remote_transport
from hostler.gateway.backends.retry_budget import RetryBudget, RetryRules
from hostler.gateway.backends.transport import Backend, Endpoint, Transport
from hostler.gateway.backends.watches import Watches
from hostler.gateway.config import ConfigError, secret
from hostler.gateway.context import SHUTTING_DOWN, Target
from hostler.gateway.conversation_hints import ConversationHints
from hostler.gateway.events import Bus
from hostler.gateway.host_choice import HostChoice
from hostler.gateway.joined_host import JoinedHost, chain_with
from hostler.gateway.lease_moves import LeaseMoves
from hostler.gateway.middleware.request_context import InFlightRequests
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.request_stores import tracer
from hostler.gateway.settings import LOCAL, Settings
from hostler.profiles.presets import Preset
from hostler.supervisor.contract import EngineAddress, HostStatus, PromptIdentity, Supervisor
from hostler.supervisor.scheduling.events import HostEvent
from hostler.supervisor.scheduling.host import Host, is_draining
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings
from hostler.supervisor.tls import CertificateError, certificate_context, pinned_context

if TYPE_CHECKING:
    from hostler.supervisor.client import SupervisorClient

#: How often it is checked whether the last requests for a host that leaves have ended, in seconds.
_RETIRE_TICK_S = 0.2

#: The longest pause between two calls to a supervisor that does not answer, in seconds.
_MAX_RETRY_S = 2.0


class OpenHost(Protocol):
    """Makes a host of this machine's supervisor; see `Orchestrator`."""

    def __call__(
        self,
        name: str,
        supervisor: Supervisor,
        *,
        settings: SchedulerSettings,
        publish: Callable[[HostEvent], None],
        on_status: Callable[[HostStatus], None],
        on_stopping: Callable[[EngineAddress], None],
        clock: Callable[[], float],
    ) -> Host: ...


class ServingComponents:
    """The parts that serve requests for models, built from the settings and connected. Nothing runs before `start`.

    `local` is this machine's supervisor, which `open_local` makes a host of, and `presets` are the models that clients
    created. Further hosts may join and leave while it runs: `entries` are the settings of all backends. `on_status`
    receives what the supervisors of other machines report, `on_return` a backend without a supervisor that responds
    again. `spending` counts costs, in the file of the settings by default. `keys_needed`: another process has decided
    whether clients need a key. Raises `ConfigError` for settings that contradict each other, and for an address beyond
    loopback without a key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        local: Supervisor | None,
        presets: Mapping[str, Preset],
        on_status: Callable[[str, HostStatus], None],
        on_return: Callable[[str], None],
        clock: Callable[[], float],
        open_local: OpenHost = Orchestrator,
        spending: SpendingTracker | None = None,
        keys_needed: bool | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.keys = keys_in_force(settings) if keys_needed is None else keys_as_decided(settings, keys_needed)
        self.bus = Bus()
        self.in_flight = InFlightRequests()
        self.sleeps = CancellableSleeps()
        self.retry_budget = RetryBudget(RetryRules())
        self._on_status = on_status
        self._open_local = open_local
        self.entries = dict(settings.backends)
        self.joined: dict[str, JoinedHost] = {}
        self._host_runs = Watches()
        self._tls: dict[str, ssl.SSLContext | None] = {}
        self._clients: dict[str, SupervisorClient] = {}
        self._find_clients()
        self.supervisors: dict[str, object] = {**({} if local is None else {LOCAL: local}), **self._clients}
        self._configured_order = self.chain_order = chain_order(settings, local)
        self.catalog = Catalog(
            settings.backends,
            self.chain_order,
            version=__version__,
            presets=presets,
            variants=settings.variants,
            since=time.time(),
        )
        self.tracer = tracer(settings.gateway.tracing, clock)
        self._lan: Transport = LanTransport()
        self._remote = remote_transport(self._lan, settings)
        self.backends = self._build_backends()
        self.hosts: dict[str, Host] = {} if local is None else {LOCAL: self._local_host(local)}
        self.hosts |= {name: self._remote_host(name, client) for name, client in self._clients.items()}
        for name, host in self.hosts.items():
            self._host_runs.add(name, host.run)
        self.host_choice = HostChoice(self.hosts, settings.gateway.placement)
        self.lease_moves = LeaseMoves(self.hosts, settings.gateway.placement, clock)
        self._hints: ConversationHints | None = None
        self.chain = Chain(
            settings,
            supervisors=self.supervisors,
            backends={name: each for name, each in self.backends.items() if each.endpoint is not None},
            reachable=lambda name: self.hosts[name].reachable,
            returning=lambda name: self.hosts[name].returning,
            draining=lambda name: is_draining(self.hosts[name]),
            drop_requests=self._drop_requests,
            on_return=on_return,
            bus=self.bus,
            clock=clock,
            spending=spending,
            entries=self.entries,
        )

    def start(self, tasks: TaskGroup) -> None:
        """Run the background tasks in the group, until it is cancelled."""
        tasks.start_soon(self._host_runs.run)
        tasks.start_soon(self.lease_moves.run)
        tasks.start_soon(self.chain.run)

    async def synced(self) -> None:
        """Wait until every supervisor has been reached."""
        for host in list(self.hosts.values()):
            await host.synced.wait()

    def use_hints(self, hints: ConversationHints) -> None:
        """Let these hints say which host may hold a conversation, and tell them what is answered from now on."""
        self.host_choice.hints = self.lease_moves.hints = self._hints = hints

    def on_answered(self, target: Target, prompt: PromptIdentity) -> None:
        """A host has answered a prompt."""
        if self._hints is not None:
            self._hints.answered(target.backend, target.model, prompt)

    def add_host(self, joined: JoinedHost) -> None:
        """Use a host of the cluster, like one of the file. Its models are served once it was reached."""
        name, entry = joined.name, joined.settings
        self.joined[name], self.entries[name] = joined, entry
        self._tls[name] = None if joined.certificate is None else certificate_context(joined.certificate)
        client = self._clients[name] = self.supervisors[name] = self._client(entry.url, joined.token, self._tls[name])
        self.backends[name] = host_backend(self.settings, name, self._near)
        self.hosts[name] = self._remote_host(name, client)
        self.chain.add_supervisor(name)
        self._host_runs.add(name, self.hosts[name].run)
        self._set_chain_order()

    def renew_certificate(self, joined: JoinedHost) -> None:
        """A host of the cluster has another certificate."""
        self.joined[joined.name] = joined
        context = self._tls[joined.name]
        if context is not None and joined.certificate is not None:
            context.load_verify_locations(cadata=joined.certificate)

    async def remove_host(self, name: str) -> None:
        """Send no request to a host any more, and forget it once those that may still go there have ended."""
        del self.joined[name]
        self._set_chain_order(gone=name)
        while any(context.may_use(name) for context in self.in_flight.contexts()):  # noqa: ASYNC110 - a rare event
            await anyio.sleep(_RETIRE_TICK_S)
        self._host_runs.end(name)
        await self.chain.remove(name)
        del self.hosts[name], self.backends[name], self.entries[name], self._tls[name], self.supervisors[name]
        await self._clients.pop(name).aclose()

    def _set_chain_order(self, gone: str | None = None) -> None:
        self.chain_order = chain_with(self._configured_order, self.hosts.keys() - self.joined.keys(), self.joined)
        self.catalog.set_chain(self.chain_order, gone=gone)

    def shut_down(self) -> None:
        """Refuse waiting requests, and wake those that pause between attempts."""
        for host in self.hosts.values():
            host.stop(partial(ShuttingDown, SHUTTING_DOWN))
        self.sleeps.stop()

    async def aclose(self) -> None:
        """Close all connections, once the last request has ended: each, whatever fails. The last failure is raised."""
        async with AsyncExitStack() as stack:
            for client in self._clients.values():
                stack.push_async_callback(client.aclose)
            stack.push_async_callback(self.chain.aclose)
            if self.tracer is not None:
                stack.push_async_callback(self.tracer.aclose)
            stack.push_async_callback(self._remote.aclose)
            stack.push_async_callback(self._lan.aclose)

    def _find_clients(self) -> None:
        """A client for each supervisor of another machine."""
        for name, backend in self.settings.backends.items():
            if backend.kind == "supervisor":
                token = secret(backend.token, backend.token_file, f"backends.{name}.token_file")
                tls = self._tls[name] = _pinned(backend.certificate, f"backends.{name}.certificate")
                self.entries[name] = msgspec.structs.replace(backend, token=token)
                self._clients[name] = self._client(backend.url, token, tls)

    def _client(self, url: str, token: str | None, tls: ssl.SSLContext | None) -> SupervisorClient:
        from hostler.supervisor.client import ClientLimits, SupervisorClient

        return SupervisorClient(url, token, limits=ClientLimits(max_retry_s=_MAX_RETRY_S), tls=tls)

    def _build_backends(self) -> dict[str, Backend]:
        self._near, far = self._lan, self._remote
        if self.tracer is not None:
            from hostler.gateway.telemetry.tracing import TracedTransport

            self._near = TracedTransport(self._near, self.clock, propagate=True)
            far = TracedTransport(far, self.clock, propagate=self.settings.gateway.tracing.to_clouds)
        return build_backends(self.settings, self.supervisors, self._near, far)

    def _update_host(self, name: str, status: HostStatus) -> None:
        self.catalog.update_host(name, status)
        if name != LOCAL:
            self._on_status(name, status)

    def _drop_requests(self, endpoint: Endpoint) -> None:
        """Nothing responds at this endpoint any more: fail its requests over."""
        if endpoint.name in self.hosts:
            self.hosts[endpoint.name].set_reachable(False)
        self.backends[endpoint.name].transport.close_all(endpoint)

    def _close_connections(self, name: str, address: EngineAddress) -> None:
        self._lan.close_all(Endpoint(host=address.host, port=address.port, name=name, key=address.key))

    @property
    def _scheduler_settings(self) -> SchedulerSettings:
        queue, switching = self.settings.gateway.queue, self.settings.gateway.switching
        return SchedulerSettings(
            patience_s=switching.patience_s,
            min_residency_s=switching.min_residency_s,
            max_waiting=queue.max_waiting,
            max_wait_s=queue.max_wait_s,
            idle_s=self.settings.gateway.batches.idle_s,
        ).clamped()

    def _local_host(self, supervisor: Supervisor) -> Host:
        return self._open_local(
            LOCAL,
            supervisor,
            settings=self._scheduler_settings,
            publish=self.bus.publish,
            on_status=partial(self._update_host, LOCAL),
            on_stopping=partial(self._close_connections, LOCAL),
            clock=self.clock,
        )

    def _remote_host(self, name: str, client: SupervisorClient) -> Host:
        from hostler.supervisor.remote_host import RemoteHost

        return RemoteHost(
            name,
            client.url,
            self.entries[name].token,
            client=client,
            limits=self._scheduler_settings,
            publish=self.bus.publish,
            on_status=partial(self._update_host, name),
            on_stopping=partial(self._close_connections, name),
            clock=self.clock,
            connect_s=self.settings.gateway.timeouts.connect_s,
            tls=self._tls[name],
        )


def _pinned(certificate: str | None, where: str) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    try:
        return pinned_context(certificate)
    except CertificateError as error:
        raise ConfigError(f"{where}: {error}") from error
