"""The parts of a gateway: hosts, the chain of backends, the catalog, the admin app, and their background tasks."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from hostler import __version__
from hostler.adapters.errors import GatewayError, ShuttingDown
from hostler.adapters.model_list import ModelList
from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.admin.app import AdminApp
from hostler.gateway.admin.backends import BackendModels, backend_models
from hostler.gateway.admin.status import ChainView, chain_view
from hostler.gateway.auth.bind_policy import keys_in_force
from hostler.gateway.backends.cancellable_sleep import CancellableSleeps
from hostler.gateway.backends.chain import Chain
from hostler.gateway.backends.discovery import ModelDiscovery
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.preview import preview_changes
from hostler.gateway.backends.registry import build_backends, chain_order, remote_transport
from hostler.gateway.backends.retry_budget import RetryBudget, RetryRules
from hostler.gateway.backends.transport import Backend, Endpoint, Transport
from hostler.gateway.batches.records import Batch
from hostler.gateway.batches.service import Batches
from hostler.gateway.cluster_settings import MISSING_CLUSTER_EXTRA
from hostler.gateway.config import LOCAL, ConfigError, FileErrors, Settings, secret
from hostler.gateway.context import SHUTTING_DOWN, Client
from hostler.gateway.events import Bus, ModelsChanged
from hostler.gateway.host_cache import HostCache
from hostler.gateway.key_usage import KeyUsage, usage_file
from hostler.gateway.middleware.request_context import InFlightRequests
from hostler.gateway.model_admin import ModelAdmin
from hostler.gateway.model_catalog import Catalog, with_unknown_states, with_unload_times
from hostler.gateway.request_stores import response_store, stream_store, tracer, transcripts
from hostler.gateway.state_files import state_file
from hostler.gateway.telemetry.access_log import AccessLog
from hostler.profiles.blobs import BlobStore
from hostler.profiles.downloads import Cancellation
from hostler.profiles.library import read_library
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.sources import ReportProgress, cache_directory
from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings
from hostler.supervisor.tls import CertificateError, pinned_context

if TYPE_CHECKING:
    from hostler.gateway.cluster.cluster import Cluster
    from hostler.supervisor.client import SupervisorClient

logger = logging.getLogger(__name__)

#: The start waits at most this long for the supervisors of other machines, in seconds.
_FIRST_SYNC_S = 1.0

#: The longest pause between two calls to a supervisor that does not answer, in seconds.
_MAX_RETRY_S = 2.0


class Components:
    """The parts of a gateway, built from its settings and connected. Nothing runs before `running`.

    `local` is this process's own supervisor, `history` the file of past requests, `library` the file of the models that
    clients create, `presets` those it holds, and `refresh` reloads it after a change. `config_errors` returns what is
    wrong with the configuration file. Raises `ConfigError` for settings that contradict each other, and for an address
    beyond loopback without a key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        local: Supervisor | None,
        history: Path | None,
        library: Path | None,
        presets: Mapping[str, Preset],
        refresh: Callable[[], Awaitable[object]] | None,
        config_errors: Callable[[], FileErrors | None] = lambda: None,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.keys = keys_in_force(settings)
        self._library = library
        self.bus = Bus()
        self.in_flight = InFlightRequests()
        self.sleeps = CancellableSleeps()
        self.retry_budget = RetryBudget(RetryRules())
        self._tokens: dict[str, str | None] = {}
        self._tls: dict[str, ssl.SSLContext | None] = {}
        self._clients = self._find_clients()
        self._supervisors: dict[str, object] = {**({} if local is None else {LOCAL: local}), **self._clients}
        self._chain_order = chain_order(settings, local)
        self._host_cache = HostCache(None if history is None else history.with_name("machines.json"))
        self.catalog = Catalog(
            settings.backends,
            self._chain_order,
            version=__version__,
            presets=presets,
            variants=settings.variants,
            since=time.time(),
        )
        for name in self._supervisors:
            self.catalog.restore_host(name, self._host_cache.profiles(name))
        self.blobs = BlobStore(cache_directory() / "models" / "blobs", settings.gateway.library.uploads_max)
        self.model_admin = ModelAdmin(
            settings.gateway.library,
            library,
            catalog=self.catalog,
            supervisors=self._supervisors,
            blobs=self.blobs,
            refresh=refresh or self._read_library,
            get_from_registry=partial(_get_from_registry, settings.supervisor.engine),
        )
        self.tracer = tracer(settings.gateway.tracing, clock)
        self.transcripts = transcripts(settings.gateway.recording)
        self.responses = response_store(settings.gateway.responses)
        self.streams = stream_store(settings.gateway.streams)
        self.batches = None
        if settings.gateway.batches.enabled:
            self.batches = Batches(
                settings.gateway.batches, find_client=self._client_of_batch, busy=self._is_server_busy,
                pass_on=any(backend.kind == "openai" for backend in settings.backends.values()), wall=time.time,
            )  # fmt: skip
        self._lan: Transport = LanTransport()
        self._remote = remote_transport(self._lan, settings)
        self.backends = self._build_backends()
        self.discovery = ModelDiscovery(
            self.backends,
            settings.gateway.discovery,
            self._on_models,
            clock,
            known={name: models for name in settings.backends if (models := self._host_cache.models(name))},
        )
        for name, view in self.discovery.views.items():
            if view.models:
                self.catalog.update_models(name, view.models)
        self.hosts: dict[str, Host] = {} if local is None else {LOCAL: self._local_host(local)}
        self.hosts |= {name: self._remote_host(name, client) for name, client in self._clients.items()}
        self.chain = Chain(
            settings,
            supervisors=self._supervisors,
            backends={name: each for name, each in self.backends.items() if each.endpoint is not None},
            reachable=lambda name: self.hosts[name].reachable,
            returning=lambda name: self.hosts[name].returning,
            drop_requests=self._drop_requests,
            on_return=self.discovery.request,
            bus=self.bus,
            clock=clock,
        )
        self.access_log = AccessLog()
        self.key_usage = None if self.keys is None else KeyUsage(usage_file(settings.gateway), time.time)
        self.cluster = _cluster(settings, clock)
        self.admin = AdminApp(
            bus=self.bus,
            catalog=self.catalog,
            hosts=self.hosts,
            supervisors=self._supervisors,
            chain=self.chain,
            chain_view=self._chain_view,
            backend_models=self._backend_models,
            preview=lambda place, rules, client, kind: preview_changes(
                self.backends[place.backend], place, rules, client, kind
            ),
            config_errors=config_errors,
            in_progress=self.in_flight,
            keys=self.keys,
            key_usage=self.key_usage,
            cluster=None if self.cluster is None else self.cluster.view,
            history=history,
            transcripts=self.transcripts,
            clock=clock,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the background tasks, from before the first request until after the last one."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.admin.run)
            if self.cluster is not None:
                tasks.start_soon(self.cluster.run)
            tasks.start_soon(anyio.to_thread.run_sync, self.blobs.remove_abandoned, time.time())
            if self.key_usage is not None:
                tasks.start_soon(self.key_usage.run)
            for host in self.hosts.values():
                tasks.start_soon(host.run)
            tasks.start_soon(self.chain.run)
            tasks.start_soon(self.discovery.run)
            if self.responses is not None:
                tasks.start_soon(self.responses.run)
            if self.batches is not None:
                tasks.start_soon(self.batches.run)
            # Supervisors and servers answer within milliseconds; the first client should see their models.
            if LOCAL in self.hosts:
                await self.hosts[LOCAL].synced.wait()
            seeded = anyio.Event()
            tasks.start_soon(_seed_service_times, self.admin, self.hosts, seeded)
            with anyio.move_on_after(_FIRST_SYNC_S):
                for host in self.hosts.values():
                    await host.synced.wait()
                await seeded.wait()
                await self.discovery.first()
            if (unknown := self.catalog.unknown_hosts & self._supervisors.keys()) and self.chain.has_remote:
                logger.warning(
                    "never reached: %s; requests for models that may be there stay local until then (`models` of a "
                    "backend limits which)",
                    ", ".join(sorted(unknown)),
                )
            try:
                yield
            finally:
                self.shut_down()
                self.access_log.flush()
                with anyio.CancelScope(shield=True):
                    await self._aclose()
                tasks.cancel_scope.cancel()

    def shut_down(self) -> None:
        """End event streams and answers that no client reads, refuse waiting requests, and wake those that pause between attempts."""
        self.bus.close()
        self.admin.close()
        if self.streams is not None:
            self.streams.stop()
        for host in self.hosts.values():
            host.stop(partial(ShuttingDown, SHUTTING_DOWN))
        self.sleeps.stop()

    def model_list(self) -> ModelList:
        """The models of all backends, with the times at which idle ones will be unloaded."""
        listing = with_unload_times(self.catalog.listing, _unload_times(self.hosts, self.clock()))
        if all(host.reachable for host in self.hosts.values()):
            return listing
        return with_unknown_states(listing, _unreachable_models(self.hosts))

    def _client_of_batch(self, batch: Batch) -> Client | None:
        """Whose requests those of a batch are; `None` if the key is no longer valid."""
        if self.keys is None:
            return Client(name=batch.client)
        for record in self.keys.records():
            client = self.keys.client_of_hash(record.hash)
            if client is not None and batch.owner == f"{client.name} {client.identity}" and "infer" in client.scopes:
                return client
        return None

    def _is_server_busy(self, model: str) -> bool:
        """Whether a local server without a supervisor that has the model serves other requests than batches."""
        try:
            places = self.catalog.find(model).places
        except GatewayError:
            return False
        servers = {each.backend for each in places if each.backend not in self.hosts and self._is_local(each.backend)}
        return bool(servers) and any(
            not context.background and context.target is not None and context.target.backend in servers
            for context in self.in_flight.contexts()
        )

    def _is_local(self, backend: str) -> bool:
        hop = self.chain.hops.get(backend)
        return hop is not None and hop.local

    async def _aclose(self) -> None:
        await self._lan.aclose()
        await self._remote.aclose()
        if self.tracer is not None:
            await self.tracer.aclose()
        await self.chain.aclose()
        for client in self._clients.values():
            await client.aclose()
        if self.cluster is not None:
            self.cluster.close()

    def _find_clients(self) -> dict[str, SupervisorClient]:
        """A client for each supervisor of another machine."""
        clients: dict[str, SupervisorClient] = {}
        for name, backend in self.settings.backends.items():
            if backend.kind == "supervisor":
                from hostler.supervisor.client import ClientLimits, SupervisorClient

                token = self._tokens[name] = secret(backend.token, backend.token_file, f"backends.{name}.token_file")
                tls = self._tls[name] = _pinned(backend.certificate, f"backends.{name}.certificate")
                limits = ClientLimits(max_retry_s=_MAX_RETRY_S)
                clients[name] = SupervisorClient(backend.url, token, limits=limits, tls=tls)
        return clients

    def _build_backends(self) -> dict[str, Backend]:
        near, far = self._lan, self._remote
        if self.tracer is not None:
            from hostler.gateway.telemetry.tracing import TracedTransport

            near = TracedTransport(near, self.clock, propagate=True)
            far = TracedTransport(far, self.clock, propagate=self.settings.gateway.tracing.to_clouds)
        return build_backends(self.settings, self._supervisors, near, far)

    def _on_status(self, name: str, status: HostStatus) -> None:
        self.catalog.update_host(name, status)
        if name != LOCAL:
            self._host_cache.update(name, status.profiles)

    def _on_models(self, name: str, models: tuple[RemoteModel, ...]) -> None:
        self.catalog.update_models(name, models)
        self._host_cache.update_models(name, models)
        self.bus.publish(ModelsChanged(backend=name, models=len(models)))

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

    def _local_host(self, supervisor: Supervisor) -> Orchestrator:
        return Orchestrator(
            LOCAL,
            supervisor,
            settings=self._scheduler_settings,
            publish=self.bus.publish,
            on_status=partial(self._on_status, LOCAL),
            on_stopping=partial(self._close_connections, LOCAL),
            clock=self.clock,
        )

    def _remote_host(self, name: str, client: SupervisorClient) -> Host:
        from hostler.supervisor.remote_host import RemoteHost

        return RemoteHost(
            name,
            client.url,
            self._tokens[name],
            client=client,
            limits=self._scheduler_settings,
            publish=self.bus.publish,
            on_status=partial(self._on_status, name),
            on_stopping=partial(self._close_connections, name),
            clock=self.clock,
            connect_s=self.settings.gateway.timeouts.connect_s,
            tls=self._tls[name],
        )

    def _chain_view(self) -> ChainView:
        kinds = {name: LOCAL if name == LOCAL else self.settings.backends[name].kind for name in self._chain_order}
        return chain_view(self.chain.hops, kinds, now=self.clock(), wall=time.time())

    def _backend_models(self) -> BackendModels:
        urls = {name: backend.shown_url for name, backend in self.settings.backends.items()}
        return backend_models(self.catalog, self._chain_view(), urls, self.discovery.views)

    async def _read_library(self) -> None:
        """Reload the library where nothing else does: its presets are all that a gateway alone uses of it."""
        if self._library is not None:
            library, _ = await anyio.to_thread.run_sync(read_library, self._library)
            self.catalog.set_presets(library.presets)


async def _seed_service_times(admin: AdminApp, hosts: Mapping[str, Host], done: anyio.Event) -> None:
    """Give hosts the answer times of the history, so that estimates are good from the start."""
    answers = await admin.answer_times()
    for name, host in hosts.items():
        host.seed_service_times(answers.get(name, {}))
    done.set()


def _pinned(certificate: str | None, where: str) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    try:
        return pinned_context(certificate)
    except CertificateError as error:
        raise ConfigError(f"{where}: {error}") from error


def _cluster(settings: Settings, clock: Callable[[], float]) -> Cluster | None:
    """`None` for a gateway on its own: nothing of it is imported then."""
    if settings.cluster is None:
        return None
    try:
        from hostler.gateway.cluster.cluster import Cluster
    except ModuleNotFoundError as error:
        raise ConfigError(MISSING_CLUSTER_EXTRA) from error
    return Cluster(
        settings.cluster,
        token=secret(settings.cluster.token, settings.cluster.token_file, "cluster.token_file"),
        listen=settings.gateway.listen,
        file=state_file("cluster-member"),
        clock=clock,
        wall=time.time,
    )


def _unload_times(hosts: Mapping[str, Host], now: float) -> dict[str, float]:
    """When idle models will be unloaded, in seconds since the epoch; on several hosts, the last time."""
    wall = time.time()
    ends: dict[str, float] = {}
    for host in hosts.values():
        for model, seconds in host.idle_times(now).items():
            ends[model] = max(ends.get(model, 0.0), wall + seconds)
    return ends


def _unreachable_models(hosts: Mapping[str, Host]) -> set[str]:
    """The models whose hosts are all unreachable."""
    models: dict[bool, set[str]] = {True: set(), False: set()}
    for host in hosts.values():
        if host.status is not None:
            models[host.reachable].update(profile.name for profile in host.status.profiles)
    return models[False] - models[True]


def _get_from_registry(
    engine: str | None, name: str, report: ReportProgress, cancellation: Cancellation
) -> tuple[ProfileEntry, Preset | None]:
    """See `model_getter.get_from_registry`, which loads what most gateways never need."""
    from hostler.gateway.model_getter import get_from_registry

    return get_from_registry(engine, name, report, cancellation)
