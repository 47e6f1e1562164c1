"""Where the parts are put together, and nowhere else: the table of layers, the backends, and what runs beside them."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

from hostler import __version__
from hostler.adapters.errors import ShuttingDown
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.registry import load_adapters
from hostler.gateway.admin.app import AdminApp
from hostler.gateway.admin.login import login_form
from hostler.gateway.admin.status import ChainView, StatusView, chain_view
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.auth import keys as key_file
from hostler.gateway.auth.bind_policy import keys_in_force, places, refuse_beyond_loopback
from hostler.gateway.auth.middleware import AuthMiddleware, Rules
from hostler.gateway.backends.base import Backend, Endpoint, Transport
from hostler.gateway.backends.cancellable_sleep import CancellableSleeps
from hostler.gateway.backends.chain import Chain
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.registry import build_backends, chain_order, remote_transport
from hostler.gateway.backends.retry_budget import RetryBudget, RetryRules
from hostler.gateway.catalog import Catalog, with_ends
from hostler.gateway.config import (
    LOCAL,
    ConfigError,
    Configuration,
    GatewaySettings,
    Settings,
    find_file,
    read,
    secret,
)
from hostler.gateway.config_reload import Reloader
from hostler.gateway.context import SHUTTING_DOWN
from hostler.gateway.events import Bus
from hostler.gateway.host_cache import HostCache
from hostler.gateway.middleware.access_log import AccessLogMiddleware
from hostler.gateway.middleware.fallback import FallbackMiddleware
from hostler.gateway.middleware.model_admin import ModelAdminMiddleware
from hostler.gateway.middleware.model_detection import ModelDetectionMiddleware, nearest_first
from hostler.gateway.middleware.model_info import ModelInfoMiddleware
from hostler.gateway.middleware.queueing import QueueingMiddleware
from hostler.gateway.middleware.recording import RecordingMiddleware
from hostler.gateway.middleware.request_context import InFlightRequests, RequestContextMiddleware
from hostler.gateway.middleware.switching import SwitchingMiddleware
from hostler.gateway.middleware.tracing import TracingMiddleware
from hostler.gateway.model_admin import ModelAdmin
from hostler.gateway.proxy import Proxy
from hostler.gateway.routing import Router, adapter_routes, wrap
from hostler.gateway.scheduling.orchestrator import Orchestrator
from hostler.gateway.scheduling.types import SchedulerSettings
from hostler.gateway.server.server import Server
from hostler.gateway.telemetry.access_log import AccessLog
from hostler.gateway.telemetry.history import default_file as history_file
from hostler.gateway.telemetry.tracing import MissingExtra, TracedTransport, Tracer, TracingOptions, require_extra
from hostler.gateway.telemetry.transcripts import TranscriptLimits, Transcripts
from hostler.gateway.telemetry.transcripts import default_file as transcripts_file
from hostler.gateway.uploads import Uploads
from hostler.profiles.blobs import BlobStore
from hostler.profiles.library import read_library
from hostler.profiles.presets import Preset
from hostler.profiles.schema import Profile
from hostler.profiles.sources import cache_directory
from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor

if TYPE_CHECKING:
    from hostler.supervisor.client import SupervisorClient
    from hostler.supervisor.manager import EngineManager

logger = logging.getLogger(__name__)

#: A gateway starts without having heard of the supervisors of other machines after this long, in seconds.
_FIRST_WORD_S = 1.0

#: A supervisor that does not answer is asked again after this long at most, in seconds.
_ASK_AGAIN_S = 2.0


class Gateway:
    """The gateway, put together from its settings. `app` is its ASGI application; nothing runs before the lifespan of that.

    `local` is the supervisor of this process, if there is one; `history` the file to remember in; `library` the one in
    which `presets`, and what else clients make, are kept; `refresh` has it taken over after a change of it. What is
    `beside` the gateway runs as long as it does, from before its start until after its end. Raises `ConfigError` for
    settings that contradict each other, and for an address beyond loopback without a key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        local: Supervisor | None = None,
        history: Path | None = None,
        library: Path | None = None,
        presets: Mapping[str, Preset] | None = None,
        refresh: Callable[[], Awaitable[object]] | None = None,
        beside: Sequence[Callable[[], Coroutine[Any, Any, object]]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._library = library
        self._beside = beside
        self._keys = keys_in_force(settings)
        if settings.gateway.tracing.endpoint is not None:
            _require_tracing()
        self._server: Server | None = None
        self._stopping = False
        self.bus = Bus()
        self._in_progress = InFlightRequests()
        self._sleeps = CancellableSleeps()
        self._clients: list[SupervisorClient] = []
        self._supervisors = self._find_supervisors(local)
        self._chain_order = chain_order(settings, local)
        self._host_cache = HostCache(None if history is None else history.with_name("machines.json"))
        self._catalog = Catalog(
            settings.backends, self._chain_order, version=__version__, presets=presets or {}, since=time.time()
        )
        for name in self._supervisors:
            self._catalog.restore_host(name, self._host_cache.profiles(name))
        self._blobs = BlobStore(cache_directory() / "models" / "blobs", settings.gateway.library.uploads_max)
        self._model_admin = ModelAdmin(
            settings.gateway.library,
            library,
            catalog=self._catalog,
            supervisors=self._supervisors,
            blobs=self._blobs,
            refresh=refresh or self._read_library,
        )
        self._tracer, self._transcripts = _tracer(settings.gateway, clock), _transcripts(settings.gateway)
        self._lan: Transport = LanTransport()
        self._remote = remote_transport(self._lan, settings)
        self._backends = self._find_backends()
        self._hosts = {name: self._orchestrator(name, each) for name, each in self._supervisors.items()}
        self._chain = Chain(
            settings,
            supervisors=self._supervisors,
            backends={name: each for name, each in self._backends.items() if each.endpoint is not None},
            reachable=lambda name: self._hosts[name].reachable,
            drop_requests=self._drop_requests,
            bus=self.bus,
            clock=clock,
        )
        self._access_log = AccessLog()
        self._admin = AdminApp(
            bus=self.bus,
            catalog=self._catalog,
            hosts=self._hosts,
            supervisors=self._supervisors,
            chain=self._chain,
            chain_view=self._chain_view,
            in_progress=self._in_progress,
            keys=self._keys,
            history=history,
            transcripts=self._transcripts,
            clock=clock,
        )
        self.app = self._application()

    def _application(self) -> Starlette:
        """The way of a request, from the outside to the inside."""
        settings, catalog, hosts, clock = self._settings.gateway, self._catalog, self._hosts, self._clock
        transcripts, tracer = self._transcripts, self._tracer
        of_models = [
            *([] if transcripts is None else [Middleware(RecordingMiddleware, transcripts.add)]),
            Middleware(
                RequestContextMiddleware,
                max_body=settings.max_body,
                progress=settings.switching.progress,
                in_progress=self._in_progress,
                clock=clock,
            ),
            *(
                []
                if tracer is None
                else [Middleware(TracingMiddleware, record=tracer.record, should_sample=tracer.should_sample)]
            ),
            Middleware(AccessLogMiddleware, bus=self.bus, log=self._access_log.add, clock=clock),
            Middleware(
                ModelInfoMiddleware, listing=lambda: with_ends(catalog.listing, _ends(hosts, clock())), bus=self.bus
            ),
            Middleware(ModelAdminMiddleware, model_admin=self._model_admin),
            Middleware(
                ModelDetectionMiddleware, find=catalog.find, order=lambda targets: nearest_first(targets, hosts)
            ),
            Middleware(
                FallbackMiddleware,
                hops=self._chain.hops,
                budget=RetryBudget(RetryRules()),
                sleeps=self._sleeps,
                settings=settings.switching,
                max_wait_s=settings.queue.max_wait_s,
                clock=clock,
            ),
            Middleware(QueueingMiddleware, hosts=hosts, settings=settings.switching, clock=clock),
            Middleware(SwitchingMiddleware, hosts=hosts, on_model_used=catalog.set_active),
        ]
        router = Router(
            [
                *adapter_routes(
                    load_adapters(),
                    wrap(Proxy(self._backends, clock=clock), of_models),
                    Uploads(self._blobs, allowed=settings.library.uploads_max > 0),
                ),
                *self._admin.routes(),
            ]
        )
        self._admin.describe(router.routes())
        of_everything = [
            Middleware(
                AuthMiddleware,
                router=router,
                fallback=OpenAIAdapter(),
                keys=self._keys,
                rules=Rules(
                    hosts=frozenset(name.lower() for name in settings.allowed_hosts),
                    origins=frozenset(settings.cors_origins),
                    open_probes=settings.open_probes,
                ),
                throttle=self._admin.throttle,
                sessions=self._admin.sessions,
                login_form=login_form,
            ),
        ]
        app = _Application(routes=[router], middleware=of_everything, lifespan=self._lifespan)
        app.state.gateway = self
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Whatever runs while requests are served. They are refused from `stop` on, at the latest from the end on."""
        async with anyio.create_task_group() as tasks:
            for run in self._beside:
                tasks.start_soon(run)
            async with self._running():
                yield
            tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._admin.run)
            tasks.start_soon(anyio.to_thread.run_sync, self._blobs.remove_abandoned, time.time())
            for host in self._hosts.values():
                tasks.start_soon(host.run)
            tasks.start_soon(self._chain.run)
            # Supervisors answer within milliseconds; whoever connects first should see their models.
            if LOCAL in self._hosts:
                await self._hosts[LOCAL].synced.wait()
            learned = anyio.Event()
            tasks.start_soon(_seed_service_times, self._admin, self._hosts, learned)
            with anyio.move_on_after(_FIRST_WORD_S):
                for host in self._hosts.values():
                    await host.synced.wait()
                await learned.wait()
            try:
                yield
            finally:
                self._end_views()
                self._access_log.flush()
                with anyio.CancelScope(shield=True):
                    await self._lan.aclose()
                    await self._remote.aclose()
                    if self._tracer is not None:
                        await self._tracer.aclose()
                    await self._chain.aclose()
                    for client in self._clients:
                        await client.aclose()
                tasks.cancel_scope.cancel()

    async def run(
        self, sockets: list[socket.socket], *, started: Callable[[], None] | None = None, shared: bool = False
    ) -> None:
        """Serve on these listening sockets until `stop`; then finish what is in progress. `started` is called once.

        `shared` sockets stay open in another process. Raises `ConfigError` for a socket beyond loopback without a key,
        whoever opened it.
        """
        if self._keys is None:
            refuse_beyond_loopback(places(sockets), key_file.default_file())
        self._server = Server(
            self.app, drain_s=self._settings.gateway.drain_s, lifespan=True, shared=shared, started_callback=started
        )
        if self._stopping:
            self._server.stop()
        await self._server.serve(sockets)

    def status(self) -> StatusView:
        """The whole gateway, now."""
        return self._admin.status()

    def stop(self) -> None:
        """Refuse what waits, finish what is in progress, and return from `run`. A second call does not wait for it."""
        self._stopping = True
        self._end_views()
        if self._server is not None:
            self._server.stop()

    def _end_views(self) -> None:
        self.bus.close()
        self._admin.close()
        for host in self._hosts.values():
            host.stop(partial(ShuttingDown, SHUTTING_DOWN))
        self._sleeps.stop()

    async def quiet(self, models: Sequence[str]) -> None:
        """Wait until this process's own supervisor serves none of the models, at most `gateway.drain_s`."""
        host = self._hosts.get(LOCAL)
        if host is None:
            return
        with anyio.move_on_after(self._settings.gateway.drain_s):
            while any(host.is_serving(model) for model in models):  # noqa: ASYNC110 - an event would cost every answer
                await anyio.sleep(0.05)

    def _find_supervisors(self, local: Supervisor | None) -> dict[str, Supervisor]:
        supervisors: dict[str, Supervisor] = {} if local is None else {LOCAL: local}
        for name, backend in self._settings.backends.items():
            if backend.kind == "supervisor":
                from hostler.supervisor.client import ClientLimits, SupervisorClient

                token = secret(backend.token, backend.token_file, f"backends.{name}.token_file")
                client = SupervisorClient(
                    backend.url,
                    token,
                    limits=ClientLimits(max_retry_s=_ASK_AGAIN_S),
                    on_reachable=partial(self._heard, name),
                )
                supervisors[name] = client
                self._clients.append(client)
        return supervisors

    def _find_backends(self) -> dict[str, Backend]:
        near, far = self._lan, self._remote
        if self._tracer is not None:
            near = TracedTransport(near, self._clock, propagate=True)
            far = TracedTransport(far, self._clock, propagate=self._settings.gateway.tracing.to_clouds)
        return build_backends(self._settings, self._supervisors, near, far)

    def _heard(self, name: str, reachable: bool) -> None:
        # An answer to one call does not mean that the events are followed again: only a snapshot says so.
        if not reachable and name in self._hosts:
            self._hosts[name].set_reachable(False)

    def _host_changed(self, name: str, status: HostStatus) -> None:
        self._catalog.update_host(name, status)
        if name != LOCAL:
            self._host_cache.update(name, status.profiles)

    def _drop_requests(self, endpoint: Endpoint) -> None:
        """Nothing responds at this endpoint any more: fail its requests over."""
        if endpoint.name in self._hosts:
            self._hosts[endpoint.name].set_reachable(False)
        self._backends[endpoint.name].transport.close_all(endpoint)

    def _orchestrator(self, name: str, supervisor: Supervisor) -> Orchestrator:
        def close_connections(address: EngineAddress) -> None:
            self._lan.close_all(Endpoint(host=address.host, port=address.port, name=name, key=address.key))

        queue, switching = self._settings.gateway.queue, self._settings.gateway.switching
        return Orchestrator(
            name,
            supervisor,
            settings=SchedulerSettings(
                patience_s=switching.patience_s,
                min_residency_s=switching.min_residency_s,
                max_waiting=queue.max_waiting,
                max_wait_s=queue.max_wait_s,
            ),
            publish=self.bus.publish,
            on_status=partial(self._host_changed, name),
            on_stopping=close_connections,
            clock=self._clock,
        )

    def _chain_view(self) -> ChainView:
        kinds = {name: LOCAL if name == LOCAL else self._settings.backends[name].kind for name in self._chain_order}
        return chain_view(self._chain.hops, kinds, now=self._clock(), wall=time.time())

    def made(self, presets: Mapping[str, Preset]) -> None:
        """These are the models that clients made of others, from now on."""
        self._catalog.set_presets(presets)

    async def _read_library(self) -> None:
        """Take over the library after a change, where there is no `refresh`: its presets are all there is."""
        if self._library is not None:
            self.made((await anyio.to_thread.run_sync(read_library, self._library))[0].presets)


def create_app(
    configuration: Configuration | None = None,
    manager: EngineManager | None = None,
    *,
    supervise: bool | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Starlette:
    """The gateway as an ASGI application with a lifespan, for any server: `uvicorn --factory hostler.gateway.app:create_app`.

    Without a `configuration` it is read from its usual places. It runs the supervisor of this machine as `hostler up`
    does: `manager`, or a new one with `supervise`, which by default is whether profiles are configured, or nothing is.
    `app.state.gateway` is the `Gateway`. Raises `ConfigError`, and `OSError` for a cache folder that cannot be made.
    """
    if configuration is None:
        configuration = read(find_file(None, environ), environ)
    if supervise is None:
        supervise = not (configuration.shipped and configuration.settings.backends)
    if manager is None and supervise:
        from hostler.supervisor.manager import create_manager

        manager = create_manager(configuration.profiles, configuration.settings.supervisor, environ=environ)
    build = partial(
        Gateway,
        configuration.settings,
        history=history_file(environ),
        library=configuration.library,
        presets=configuration.presets,
    )
    if manager is None:
        return build().app
    local = manager

    async def apply(profiles: Sequence[Profile]) -> None:
        """Take over changed profiles; the answers of engines that have to go for it end first."""
        await gateway.quiet(local.outdated(profiles))
        await local.replace_profiles(profiles)

    gateway: Gateway = build(
        local=local,
        refresh=lambda: reloader.reload(),
        beside=(local.run, lambda: reloader.run()),
    )
    reloader: Reloader = Reloader(configuration, apply, environ, on_presets=gateway.made)
    return gateway.app


class _Application(Starlette):
    """Starlette, without its handlers for errors around everything: they would wrap `send`, which costs models' requests 6 µs
    each, and `RequestContextMiddleware` answers for those. The gateway's own routes have them (`own_routes`)."""

    def build_middleware_stack(self) -> ASGIApp:
        return wrap(ServerErrorMiddleware(ExceptionMiddleware(self.router)), self.user_middleware)


async def _seed_service_times(admin: AdminApp, hosts: Mapping[str, Orchestrator], done: anyio.Event) -> None:
    """Give hosts the answer times of the history, so that estimates are good from the start."""
    answers = await admin.answer_times()
    for name, host in hosts.items():
        host.seed_service_times(answers.get(name, {}))
    done.set()


def _require_tracing() -> None:
    try:
        require_extra()
    except MissingExtra as error:
        raise ConfigError("gateway.tracing.endpoint requires an extra; run `pip install 'hostler[otel]'`") from error


def _tracer(settings: GatewaySettings, clock: Callable[[], float]) -> Tracer | None:
    """`None` without an endpoint: nothing of OpenTelemetry is imported then."""
    tracing = settings.tracing
    if tracing.endpoint is None:
        return None
    options = TracingOptions(
        endpoint=tracing.endpoint, headers=tracing.headers, service=tracing.service, sample=tracing.sample
    )
    return Tracer(options, clock, version=__version__)


def _transcripts(settings: GatewaySettings) -> Transcripts | None:
    """`None` while recording is off."""
    recording = settings.recording
    file = Path(recording.file).expanduser() if recording.file else transcripts_file()
    if recording.contents:
        logger.warning("recording prompts and answers in %s (gateway.recording.contents)", file)
        return Transcripts(file, TranscriptLimits(max_bytes=recording.max_size, max_age_s=recording.max_age_s))
    if file.is_file():
        logger.warning("%s still contains recorded prompts and answers; delete it if it is no longer needed", file)
    return None


def _ends(hosts: Mapping[str, Orchestrator], now: float) -> dict[str, float]:
    """When idle models will be unloaded, in seconds since the epoch; on several hosts, the last time."""
    wall = time.time()
    ends: dict[str, float] = {}
    for host in hosts.values():
        for model, seconds in host.idle_times(now).items():
            ends[model] = max(ends.get(model, 0.0), wall + seconds)
    return ends
