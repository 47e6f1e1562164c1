"""Where the parts are put together, and nowhere else: the table of layers, the backends, and what runs beside them."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from starlette.applications import Starlette

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
from hostler.gateway.config import LOCAL, ConfigError, GatewaySettings, Settings, secret
from hostler.gateway.context import NO_MORE
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
from hostler.gateway.routing import Router, adapter_routes, build
from hostler.gateway.scheduling.orchestrator import Orchestrator
from hostler.gateway.scheduling.types import SchedulerSettings
from hostler.gateway.server.server import Server
from hostler.gateway.telemetry.access_log import AccessLog
from hostler.gateway.telemetry.tracing import MissingExtra, TracedTransport, Tracer, TracingOptions, require_extra
from hostler.gateway.telemetry.transcripts import TranscriptLimits, Transcripts
from hostler.gateway.telemetry.transcripts import default_file as contents_file
from hostler.gateway.uploads import Uploads
from hostler.profiles.blobs import BlobStore
from hostler.profiles.library import read_library
from hostler.profiles.presets import Preset
from hostler.profiles.sources import cache_directory
from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor

if TYPE_CHECKING:
    from hostler.supervisor.client import SupervisorClient

logger = logging.getLogger(__name__)

#: A gateway starts without having heard of the supervisors of other machines after this long, in seconds.
_FIRST_WORD_S = 1.0

#: A supervisor that does not answer is asked again after this long at most, in seconds.
_ASK_AGAIN_S = 2.0


class Gateway:
    """The gateway, put together from its settings. Nothing happens until `run`.

    `local` is the supervisor of this process, if there is one; `history` the file to remember in; `library` the one in
    which `presets`, and what else clients make, are kept; `refresh` has it taken over after a change of it. Raises `ConfigError` for settings that contradict
    each other, and for an address beyond loopback without a key.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._keys = keys_in_force(settings)
        if settings.gateway.tracing.endpoint is not None:
            _need_traces()
        self.bus = Bus()
        self._hosts: Mapping[str, Orchestrator] = {}
        self._in_progress = InFlightRequests()
        self._sleeps = CancellableSleeps()
        self._clients: list[SupervisorClient] = []
        self._supervisors = self._find_supervisors(local)
        self._chain = chain_order(settings, local)
        self._history = history
        self._library = library
        self._presets = dict(presets or {})
        self._refresh = refresh
        self._catalog: Catalog | None = None
        self._host_cache = HostCache(None if history is None else history.with_name("machines.json"))
        self._desk: AdminApp | None = None
        self._server: Server | None = None
        self._stopping = False

    async def run(self, sockets: list[socket.socket], *, started: Callable[[], None] | None = None) -> None:
        """Serve on these listening sockets until `stop`; then finish what is in progress. `started` is called once.

        Raises `ConfigError` for a socket beyond loopback without a key, whoever opened it.
        """
        if self._keys is None:
            refuse_beyond_loopback(places(sockets), key_file.default_file())
        settings = self._settings.gateway
        catalog = self._catalog = Catalog(
            self._settings.backends, self._chain, version=__version__, presets=self._presets, since=time.time()
        )
        for name in self._supervisors:
            catalog.restore_host(name, self._host_cache.profiles(name))
        rules = settings.library
        blobs = BlobStore(cache_directory() / "models" / "blobs", rules.uploads_max)
        model_admin = ModelAdmin(
            rules,
            self._library,
            catalog=catalog,
            supervisors=self._supervisors,
            blobs=blobs,
            refresh=self._refresh or self._read_library,
        )
        lan: Transport = LanTransport()
        hosts = {
            name: self._orchestrator(name, supervisor, catalog, lan) for name, supervisor in self._supervisors.items()
        }
        self._hosts = hosts
        journal = AccessLog()
        remote = remote_transport(lan, self._settings)
        tracer, contents = _tracer(settings, self._clock), _contents(settings)
        near, far = lan, remote  # type: Transport, Transport
        if tracer is not None:
            near = TracedTransport(lan, self._clock, propagate=True)
            far = TracedTransport(remote, self._clock, propagate=settings.tracing.to_clouds)
        backends = build_backends(self._settings, self._supervisors, near, far)
        chain = Chain(
            self._settings,
            supervisors=self._supervisors,
            backends={name: backend for name, backend in backends.items() if backend.endpoint is not None},
            reachable=lambda name: hosts[name].reachable,
            drop_requests=partial(self._drop_requests, backends),
            bus=self.bus,
            clock=self._clock,
        )
        desk = self._desk = AdminApp(
            bus=self.bus,
            catalog=catalog,
            hosts=hosts,
            supervisors=self._supervisors,
            chain=chain,
            chain_view=partial(self._chain_view, chain),
            in_progress=self._in_progress,
            keys=self._keys,
            history=self._history,
            transcripts=contents,
            clock=self._clock,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.run)
            tasks.start_soon(anyio.to_thread.run_sync, blobs.remove_abandoned, time.time())
            for host in hosts.values():
                tasks.start_soon(host.run)
            tasks.start_soon(chain.run)
            # Supervisors answer within milliseconds; who connects first is not told that nothing is known.
            if LOCAL in hosts:
                await hosts[LOCAL].synced.wait()
            learned = anyio.Event()
            tasks.start_soon(_remember, desk, hosts, learned)
            with anyio.move_on_after(_FIRST_WORD_S):
                for host in hosts.values():
                    await host.synced.wait()
                await learned.wait()
            pipeline = build(
                [
                    lambda app: app if contents is None else RecordingMiddleware(app, contents.add),
                    lambda app: RequestContextMiddleware(
                        app,
                        max_body=settings.max_body,
                        progress=settings.switching.progress,
                        in_progress=self._in_progress,
                        clock=self._clock,
                    ),
                    lambda app: (
                        app
                        if tracer is None
                        else TracingMiddleware(app, record=tracer.record, should_sample=tracer.should_sample)
                    ),
                    lambda app: AccessLogMiddleware(app, bus=self.bus, log=journal.add, clock=self._clock),
                    lambda app: ModelInfoMiddleware(
                        app, listing=lambda: with_ends(catalog.listing, _ends(hosts, self._clock())), bus=self.bus
                    ),
                    lambda app: ModelAdminMiddleware(app, model_admin=model_admin),
                    lambda app: ModelDetectionMiddleware(
                        app, find=catalog.find, order=lambda targets: nearest_first(targets, hosts)
                    ),
                    lambda app: FallbackMiddleware(
                        app,
                        hops=chain.hops,
                        budget=RetryBudget(RetryRules()),
                        sleeps=self._sleeps,
                        settings=settings.switching,
                        max_wait_s=settings.queue.max_wait_s,
                        clock=self._clock,
                    ),
                    lambda app: QueueingMiddleware(app, hosts=hosts, settings=settings.switching, clock=self._clock),
                    lambda app: SwitchingMiddleware(app, hosts=hosts, on_model_used=catalog.set_active),
                ],
                Proxy(backends, clock=self._clock),
            )
            self._server = Server(
                self._application(pipeline, Uploads(blobs, allowed=rules.uploads_max > 0), desk),
                drain_s=settings.drain_s,
                started_callback=started,
            )
            if self._stopping:
                self._server.stop()
            try:
                await self._server.serve(sockets)
            finally:
                journal.flush()
                # Cancelled, the server has not let go of them; the loop must before their numbers are given out again.
                for server in getattr(self._server, "servers", ()):
                    server.close()
                for each in sockets:
                    each.close()
                with anyio.CancelScope(shield=True):
                    await lan.aclose()
                    await remote.aclose()
                    if tracer is not None:
                        await tracer.aclose()
                    await chain.aclose()
                    for client in self._clients:
                        await client.aclose()
                tasks.cancel_scope.cancel()

    def status(self) -> StatusView | None:
        """The whole gateway, now; `None` before it runs."""
        return None if self._desk is None else self._desk.status()

    def stop(self) -> None:
        """Finish what is in progress and return from `run`. A second call does not wait for it."""
        self._stopping = True
        self.bus.close()
        if self._desk is not None:
            self._desk.close()
        for host in self._hosts.values():
            host.stop(partial(ShuttingDown, NO_MORE))
        self._sleeps.stop()
        if self._server is not None:
            self._server.stop()

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

    def _heard(self, name: str, reachable: bool) -> None:
        # An answer to one call does not mean that the events are followed again: only a snapshot says so.
        if not reachable and name in self._hosts:
            self._hosts[name].set_reachable(False)

    def _host_changed(self, catalog: Catalog, name: str, status: HostStatus) -> None:
        catalog.update_host(name, status)
        if name != LOCAL:
            self._host_cache.update(name, status.profiles)

    def _drop_requests(self, backends: Mapping[str, Backend], endpoint: Endpoint) -> None:
        """Nothing responds at this endpoint any more: fail its requests over."""
        if endpoint.name in self._hosts:
            self._hosts[endpoint.name].set_reachable(False)
        backends[endpoint.name].transport.close_all(endpoint)

    def _orchestrator(self, name: str, supervisor: Supervisor, catalog: Catalog, lan: Transport) -> Orchestrator:
        def close_connections(address: EngineAddress) -> None:
            lan.close_all(Endpoint(host=address.host, port=address.port, name=name, key=address.key))

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
            on_status=partial(self._host_changed, catalog, name),
            on_stopping=close_connections,
            clock=self._clock,
        )

    def _chain_view(self, chain: Chain) -> ChainView:
        kinds = {name: LOCAL if name == LOCAL else self._settings.backends[name].kind for name in self._chain}
        return chain_view(chain.hops, kinds, now=self._clock(), wall=time.time())

    def made(self, presets: Mapping[str, Preset]) -> None:
        """These are the models that clients made of others, from now on."""
        self._presets = dict(presets)
        if self._catalog is not None:
            self._catalog.set_presets(presets)

    async def _read_library(self) -> None:
        """What to do after a change of the library where nobody else takes it over: its presets are all there is."""
        if self._library is not None:
            self.made((await anyio.to_thread.run_sync(read_library, self._library))[0].presets)

    def _application(self, pipeline: ASGIApp, uploads: ASGIApp, desk: AdminApp) -> ASGIApp:
        settings = self._settings.gateway
        surface = Router([*adapter_routes(load_adapters(), pipeline, uploads), *desk.routes()])
        desk.describe(surface.claims())
        return AuthMiddleware(
            Starlette(routes=[surface]),
            surface=surface,
            fallback=OpenAIAdapter(),
            keys=self._keys,
            rules=Rules(
                hosts=frozenset(name.lower() for name in settings.allowed_hosts),
                origins=frozenset(settings.cors_origins),
                open_probes=settings.open_probes,
            ),
            throttle=desk.throttle,
            sessions=desk.sessions,
            login_form=login_form,
        )


async def _remember(desk: AdminApp, hosts: Mapping[str, Orchestrator], done: anyio.Event) -> None:
    """Hosts take over how long answers took before: those who wait are told when their turn comes from the start on."""
    answers = await desk.answer_times()
    for name, host in hosts.items():
        host.seed_service_times(answers.get(name, {}))
    done.set()


def _need_traces() -> None:
    try:
        require_extra()
    except MissingExtra as error:
        raise ConfigError(
            "gateway.tracing.endpoint: traces need the extra; install it with `pip install 'hostler[otel]'`"
        ) from error


def _tracer(settings: GatewaySettings, clock: Callable[[], float]) -> Tracer | None:
    """What makes spans, if there is a collector for them. Nothing of OpenTelemetry is imported otherwise."""
    tracing = settings.tracing
    if tracing.endpoint is None:
        return None
    rules = TracingOptions(
        endpoint=tracing.endpoint, headers=tracing.headers, service=tracing.service, sample=tracing.sample
    )
    return Tracer(rules, clock, version=__version__)


def _contents(settings: GatewaySettings) -> Transcripts | None:
    """Where prompts and answers are kept, if they are."""
    recording = settings.recording
    file = Path(recording.file).expanduser() if recording.file else contents_file()
    if recording.contents:
        logger.warning("prompts and answers are recorded in %s (gateway.recording.contents)", file)
        return Transcripts(file, TranscriptLimits(max_bytes=recording.max_size, max_age_s=recording.max_age_s))
    if file.is_file():
        logger.warning("%s still holds prompts and answers of when they were recorded: delete it if you may", file)
    return None


def _ends(hosts: Mapping[str, Orchestrator], now: float) -> dict[str, float]:
    """When idle models will be unloaded, in seconds since the epoch; on several hosts, the last of the moments."""
    wall = time.time()
    ends: dict[str, float] = {}
    for host in hosts.values():
        for model, seconds in host.idle_times(now).items():
            ends[model] = max(ends.get(model, 0.0), wall + seconds)
    return ends
