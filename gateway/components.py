"""The parts of a gateway: those that serve models, discovery, stores, the admin app, and their background tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from hostler.adapters.model_list import ModelList
from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.admin.app import AdminApp
from hostler.gateway.admin.backends import BackendModels, backend_models
from hostler.gateway.admin.model_downloads import ModelDownloads
from hostler.gateway.admin.status import ChainView, chain_view
from hostler.gateway.auth.shared_keys import SharedKeysFile
from hostler.gateway.backends.discovery import ModelDiscovery
from hostler.gateway.backends.preview import preview_changes
from hostler.gateway.background_downloads import BackgroundDownloads
from hostler.gateway.batch_turns import BatchTurns
from hostler.gateway.batches.service import Batches
from hostler.gateway.cluster_settings import MISSING_CLUSTER_EXTRA
from hostler.gateway.cluster_view import GatewayHost, gateway_host
from hostler.gateway.config import ConfigError, FileErrors, secret
from hostler.gateway.conversation_places import ConversationPlaces
from hostler.gateway.events import ModelsChanged
from hostler.gateway.host_cache import HostCache
from hostler.gateway.in_flight import OtherProcesses, OtherRequests, RequestView, request_views
from hostler.gateway.joined_host import JoinedHost
from hostler.gateway.joining_hosts import JoiningHosts
from hostler.gateway.key_usage import KeyUsage, usage_file
from hostler.gateway.lazy_registries import LazyRegistries, get_from_registry
from hostler.gateway.live_model_list import live_model_list
from hostler.gateway.model_admin import ModelAdmin
from hostler.gateway.request_stores import response_store, stream_store, transcripts
from hostler.gateway.serving import OpenHost, ServingComponents
from hostler.gateway.settings import LOCAL, Settings
from hostler.gateway.shared_files import Apply, shared_file
from hostler.gateway.state_files import state_file
from hostler.gateway.telemetry.access_log import AccessLog
from hostler.profiles.blobs import BlobStore
from hostler.profiles.library import read_library
from hostler.profiles.presets import Preset
from hostler.profiles.sources import cache_directory
from hostler.supervisor.contract import ProfileInfo, Supervisor
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.orchestrator import Orchestrator

if TYPE_CHECKING:
    from hostler.gateway.cluster.cluster import Cluster

logger = logging.getLogger(__name__)

#: The start waits at most this long for the supervisors of other machines, in seconds.
_FIRST_SYNC_S = 1.0


class Components:
    """The parts of a gateway, built from its settings and connected. Nothing runs before `running`.

    `local` is this process's own supervisor, `history` the file of past requests, `library` the file of the models that
    clients create, `presets` those it holds, and `refresh` reloads it after a change. `config_errors` returns what is
    wrong with the configuration file, and `apply_profiles` uses those that members of the cluster share. With worker
    processes, `others` are these, and `open_local` makes a host of `local` that they use as well. Raises `ConfigError`
    for settings that contradict each other, and for an address beyond loopback without a key.
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
        apply_profiles: Apply | None = None,
        clock: Callable[[], float],
        open_local: OpenHost = Orchestrator,
        others: OtherProcesses | None = None,
    ) -> None:
        self.settings = settings
        self._others = others
        self._apply_profiles = apply_profiles
        #: Called when hosts join or leave.
        self.on_hosts: Callable[[Sequence[JoinedHost]], None] | None = None
        self._library = library
        self._host_cache = HostCache(None if history is None else history.with_name("machines.json"))
        self.cluster = _cluster(settings, clock)
        serving = self.serving = ServingComponents(
            settings,
            local=local,
            presets=presets,
            on_status=lambda name, status: self._host_cache.update(name, status.profiles),
            on_return=lambda name: self.discovery.request(name),
            clock=clock,
            open_local=open_local,
            spending=None if self.cluster is None else self.cluster.spending(settings.gateway),
        )
        for name in serving.supervisors:
            serving.catalog.restore_host(name, self._host_cache.profiles(name))
        self.blobs = BlobStore(cache_directory() / "models" / "blobs", settings.gateway.library.uploads_max)
        self.model_admin = ModelAdmin(
            settings.gateway.library,
            library,
            catalog=serving.catalog,
            supervisors=serving.supervisors,
            blobs=self.blobs,
            refresh=refresh or self._read_library,
            get_from_registry=partial(get_from_registry, settings.supervisor.engine),
        )
        self.downloads = BackgroundDownloads(self.model_admin.fetch, wall=time.time, clock=clock)
        self.transcripts = transcripts(settings.gateway.recording)
        self.responses = response_store(settings.gateway.responses)
        self.streams = stream_store(settings.gateway.streams)
        self.batches = None
        if settings.gateway.batches.enabled:
            turns = BatchTurns(serving, others)
            self.batches = Batches(
                settings.gateway.batches, find_client=turns.client_of, must_wait=turns.must_wait,
                pass_on=any(backend.kind == "openai" for backend in settings.backends.values()), wall=time.time,
                gateways=None if self.cluster is None else self.cluster.peers,
            )  # fmt: skip
        self.discovery = ModelDiscovery(
            serving.backends,
            settings.gateway.discovery,
            self._on_models,
            clock,
            known={name: models for name in settings.backends if (models := self._host_cache.models(name))},
        )
        for name, view in self.discovery.views.items():
            if view.models:
                serving.catalog.update_models(name, view.models)
        self.access_log = AccessLog()
        self.key_usage = None if serving.keys is None else self._key_usage()
        self.admin = AdminApp(
            bus=serving.bus,
            catalog=serving.catalog,
            hosts=serving.hosts,
            host_choice=serving.host_choice,
            supervisors=serving.supervisors,
            chain=serving.chain,
            chain_view=self._chain_view,
            backend_models=self._backend_models,
            preview=lambda place, rules, client, kind: preview_changes(
                serving.backends[place.backend], place, rules, client, kind
            ),
            config_errors=config_errors,
            in_progress=serving.in_flight,
            others=others,
            downloads=ModelDownloads(
                LazyRegistries(settings.supervisor.engine, self._held_gpu_memory),
                check=self.model_admin.check_new,
                add=self.model_admin.add,
            ),
            gateways=self._requests_of_gateways(),
            keys=serving.keys,
            key_usage=self.key_usage,
            cluster=None if self.cluster is None else self.cluster.view,
            gateway=None if self.cluster is None else self.cluster.gateway,
            history=history,
            transcripts=self.transcripts,
            clock=clock,
        )
        self.conversations: ConversationPlaces | None = None
        self.joining = JoiningHosts(serving, self._restore_host)
        if self.cluster is not None:
            self._share(self.cluster)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the background tasks, from before the first request until after the last one."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.admin.run)
            if self.cluster is not None:
                tasks.start_soon(self.cluster.run)
                tasks.start_soon(self.joining.run)
            tasks.start_soon(anyio.to_thread.run_sync, self.blobs.remove_abandoned, time.time())
            if self.key_usage is not None:
                tasks.start_soon(self.key_usage.run)
            self.serving.start(tasks)
            tasks.start_soon(self.downloads.run)
            tasks.start_soon(self.discovery.run)
            if self.responses is not None:
                tasks.start_soon(self.responses.run)
            if self.batches is not None:
                tasks.start_soon(self.batches.run)
            # Supervisors and servers answer within milliseconds; the first client should see their models.
            hosts, catalog = self.serving.hosts, self.serving.catalog
            if LOCAL in hosts:
                await hosts[LOCAL].synced.wait()
            seeded = anyio.Event()
            tasks.start_soon(_seed_service_times, self.admin, hosts, seeded)
            with anyio.move_on_after(_FIRST_SYNC_S):
                await self.serving.synced()
                await seeded.wait()
                await self.discovery.first()
            if (unknown := catalog.unknown_hosts & hosts.keys()) and self.serving.chain.has_remote:
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
        """End event streams and answers that no client reads, refuse waiting requests, and wake those that pause
        between attempts."""
        self.serving.bus.close()
        self.admin.close()
        if self.streams is not None:
            self.streams.stop()
        self.serving.shut_down()

    def profiles_of(self, host: str) -> tuple[ProfileInfo, ...]:
        """The last known profiles of a supervisor's machine."""
        return self._host_cache.profiles(host)

    def model_list(self) -> ModelList:
        """The models of all backends, with the times at which idle ones will be unloaded."""
        serving = self.serving
        return live_model_list(serving.catalog.listing, serving.hosts, now=serving.clock(), wall=time.time())

    def _share(self, cluster: Cluster) -> None:
        serving = self.serving
        if self.responses is not None:
            cluster.share_responses(self.responses, self.settings.gateway.responses.max_age_s)
        self.conversations = cluster.share_conversations(serving.entries)
        serving.use_hints(self.conversations)
        cluster.share_history(self.admin.history, serving.bus)
        cluster.share_logins(self.admin.sessions, self.admin.throttle)
        shared_keys = shared_file(self.settings.cluster, "keys")
        if shared_keys is not None:
            cluster.follow_configuration("keys", SharedKeysFile(shared_keys, serving.keys).apply)
        if self._apply_profiles is not None:
            cluster.follow_configuration("profiles", self._apply_profiles)
        cluster.share_breakers(serving.chain.hops, serving.entries, serving.bus)
        cluster.follow_hosts(self.settings.backends, self._generations, self._is_reachable, self.use_hosts)

    def use_hosts(self, hosts: Sequence[JoinedHost]) -> None:
        """These hosts have joined the cluster, and no others."""
        self.joining.update(hosts)
        if self.on_hosts is not None:
            self.on_hosts(self.joining.wanted)

    def _generations(self) -> dict[str, int]:
        """The generations of the supervisors that the file names, as far as they have been reached."""
        hosts = self.serving.hosts
        named = {name: hosts[name].status for name in self.settings.backends if name in hosts}
        return {name: status.generation for name, status in named.items() if status is not None}

    def _is_reachable(self, name: str) -> bool:
        host = self.serving.hosts.get(name)
        return host is not None and host.reachable

    def _restore_host(self, name: str) -> None:
        self.serving.catalog.restore_host(name, self._host_cache.profiles(name))

    def _requests_of_gateways(self) -> OtherRequests | None:
        """The requests of other gateways, if there are any."""
        if self.cluster is None:
            return None
        serving, workers = self.serving, self._others

        def own() -> Sequence[RequestView]:
            views = request_views(serving.in_flight.contexts(), serving.hosts, offset=time.time() - serving.clock())
            return views if workers is None else (*views, *workers.views())

        async def cancel(request_id: str) -> int:
            cancelled = serving.in_flight.cancel(request_id)
            return cancelled if workers is None else cancelled + await workers.cancel(request_id)

        def own_hosts() -> Sequence[GatewayHost]:
            return [found for host in serving.hosts.values() if (found := gateway_host(host)) is not None]

        return self.cluster.share_requests(own, cancel, own_hosts)

    def _key_usage(self) -> KeyUsage:
        settings = self.settings.gateway
        return KeyUsage(usage_file(settings), time.time) if self.cluster is None else self.cluster.key_usage(settings)

    def _held_gpu_memory(self) -> int:
        """What the loaded models of this machine take of its GPUs, in bytes."""
        host = self.serving.hosts.get(LOCAL)
        return 0 if host is None or host.status is None else sum(each.gpu_bytes for each in host.status.models)

    async def _aclose(self) -> None:
        async with AsyncExitStack() as stack:
            if self.cluster is not None:
                stack.callback(self.cluster.close)
            stack.push_async_callback(self.serving.aclose)

    def _on_models(self, name: str, models: tuple[RemoteModel, ...]) -> None:
        self.serving.catalog.update_models(name, models)
        self._host_cache.update_models(name, models)
        self.serving.bus.publish(ModelsChanged(backend=name, models=len(models)))

    def _chain_view(self) -> ChainView:
        serving, backends = self.serving, self.serving.entries
        kinds = {name: LOCAL if name == LOCAL else backends[name].kind for name in serving.chain_order}
        return chain_view(serving.chain.hops, kinds, now=serving.clock(), wall=time.time())

    def _backend_models(self) -> BackendModels:
        urls = {name: backend.shown_url for name, backend in self.serving.entries.items()}
        return backend_models(self.serving.catalog, self._chain_view(), urls, self.discovery.views)

    async def _read_library(self) -> None:
        """Reload the library where nothing else does: its presets are all that a gateway alone uses of it."""
        if self._library is not None:
            library, _ = await anyio.to_thread.run_sync(read_library, self._library)
            self.serving.catalog.set_presets(library.presets)


async def _seed_service_times(admin: AdminApp, hosts: Mapping[str, Host], done: anyio.Event) -> None:
    """Give hosts the answer times of the history, so that estimates are good from the start."""
    answers = await admin.answer_times()
    for name, host in hosts.items():
        host.seed_service_times(answers.get(name, {}))
    done.set()


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
        tls=settings.gateway.tls,
        state=state_file,
        clock=clock,
        wall=time.time,
    )
