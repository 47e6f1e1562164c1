"""The gateway as an ASGI application: its middleware in order, and the parts that they use."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.registry import load_adapters
from hostler.gateway import model_pipeline
from hostler.gateway.admin.login import login_form
from hostler.gateway.admin.status import StatusView
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.auth import keys as key_file
from hostler.gateway.auth.bind_policy import bound_addresses, refuse_beyond_loopback
from hostler.gateway.auth.middleware import AuthMiddleware, Rules
from hostler.gateway.auth.reverse_proxy import ReverseProxyMiddleware
from hostler.gateway.backends.prompt_reading import PromptSpeeds
from hostler.gateway.cluster_settings import without_secrets
from hostler.gateway.components import Components
from hostler.gateway.config import Configuration, FileErrors
from hostler.gateway.config_reload import Reloader
from hostler.gateway.events import Bus
from hostler.gateway.last_good import find_configuration, load
from hostler.gateway.middleware.downloads import DownloadsMiddleware
from hostler.gateway.middleware.model_admin import ModelAdminMiddleware
from hostler.gateway.middleware.model_info import ModelInfoMiddleware
from hostler.gateway.middleware.recording import RecordingMiddleware
from hostler.gateway.middleware.resumable_streams import ResumableStreamsMiddleware
from hostler.gateway.middleware.stored_responses import StoredResponsesMiddleware
from hostler.gateway.preflight import Command, startup_check
from hostler.gateway.proxy import Proxy
from hostler.gateway.routing import Router, adapter_routes, wrap
from hostler.gateway.server.server import Server, server_certificate
from hostler.gateway.settings import LOCAL, Settings
from hostler.gateway.shared_files import Apply
from hostler.gateway.shared_profiles_file import SharedProfilesFile
from hostler.gateway.telemetry.history import default_file as history_file
from hostler.gateway.uploads import Uploads
from hostler.profiles.presets import Preset
from hostler.profiles.schema import Profile
from hostler.supervisor.contract import Supervisor
from hostler.supervisor.scheduling.orchestrator import Orchestrator

if TYPE_CHECKING:
    from hostler.gateway.model_finder import ModelFinder
    from hostler.gateway.worker_service import WorkerService
    from hostler.supervisor.manager import EngineManager


#: How long workers have to refuse their waiting requests before the host of this machine does, in seconds.
_REFUSE_AFTER_S = 0.2


def create_app(
    configuration: Configuration | None = None,
    manager: EngineManager | None = None,
    *,
    supervise: bool | None = None,
    finder: ModelFinder | None = None,
    environ: Mapping[str, str] = os.environ,
    with_workers: bool = False,
) -> Starlette:
    """The gateway as an ASGI application with a lifespan, for any server: `uvicorn --factory hostler.gateway.app:create_app`.

    Without a `configuration` it is read from its usual locations. Like `hostler up`, it runs the supervisor of this machine:
    `manager`, or a new one with `supervise`, and looks for models in folders with `finder`. The default of `supervise` is
    true if profiles are configured, or nothing is. `with_workers`: it is served by `Gateway.run`, which starts the
    worker processes of the settings; other servers have their own.
    `app.state.gateway` is the `Gateway`. Raises `ConfigError`, and `OSError` for a cache folder that cannot be created.
    """
    if finder is None and supervise is not False:
        from hostler.gateway.model_finder import ModelFinder

        finder = ModelFinder()
    if configuration is None:
        configuration = load(find_configuration(None, environ), environ, find_models=finder)
    if supervise is None:
        supervise = not (configuration.shipped and configuration.settings.backends)
    if manager is None and supervise:
        from hostler.supervisor.manager import create_manager

        engine_environ = without_secrets(environ, configuration.settings.cluster)
        manager = create_manager(configuration.profiles, configuration.settings.supervisor, environ=engine_environ)
    local = manager
    if local is not None and finder is not None:
        finder.is_loaded = local.is_loaded

    async def apply(profiles: Sequence[Profile]) -> None:
        """Apply changed profiles once the answers of engines that stop for it have ended."""
        if local is not None:
            await gateway.drained(local.outdated(profiles))
            await local.replace_profiles(profiles)

    gateway = Gateway(
        configuration.settings,
        local=local,
        history=history_file(environ),
        library=configuration.library,
        presets=configuration.presets,
        refresh=lambda: reloader.reload(),
        config_errors=lambda: reloader.errors,
        apply_profiles=None
        if local is None or configuration.shared.file is None
        else lambda text: shared_profiles.apply(text),
        background=(*(() if local is None else (local.run,)), lambda: reloader.run()),
        workers=_worker_service(configuration.settings, local) if with_workers else None,
    )
    command: Command = "up" if local is not None else "gateway"
    reloader = Reloader(
        configuration,
        apply,
        environ,
        on_presets=gateway.set_presets,
        find_mistakes=startup_check(command),
        finder=finder if local is not None else None,
    )
    if configuration.shared.file is not None:
        shared_profiles = SharedProfilesFile(configuration.shared.file, reloader)
    return gateway.app


def _worker_service(settings: Settings, local: EngineManager | None) -> WorkerService | None:
    """`None` if this process serves everything itself."""
    if settings.gateway.workers == 1:
        return None
    from hostler.gateway.worker_service import WorkerService

    return WorkerService(settings.gateway.workers, local=local)


def model_middleware(
    parts: Components,
    *,
    on_model_used: Callable[[str], None] | None = None,
    stores: bool = False,
    resumes: bool = False,
) -> list[Middleware]:
    """The middleware of requests for models, outermost first, around `Proxy`. `stores`: of routes that use stored
    responses, `resumes`: of those about streams."""
    serving = parts.serving
    recording = []
    if parts.transcripts is not None:
        recording.append(Middleware(RecordingMiddleware, parts.transcripts.add))
    storing = []
    if stores:
        pass_on = any(backend.kind == "openai" for backend in parts.settings.backends.values())
        storing.append(Middleware(StoredResponsesMiddleware, store=parts.responses, pass_on=pass_on))
    if resumes:
        storing.append(Middleware(ResumableStreamsMiddleware, store=parts.streams))
    return [
        *recording,
        *model_pipeline.model_middleware(
            serving,
            log=parts.access_log.add,
            refresh=parts.discovery.refresh,
            key_usage=parts.key_usage,
            on_model_used=on_model_used or serving.catalog.set_active,
            streams=parts.streams,
            answering=[
                *storing,
                Middleware(
                    ModelInfoMiddleware, listing=parts.model_list, refresh=parts.discovery.refresh, bus=serving.bus
                ),
                Middleware(ModelAdminMiddleware, model_admin=parts.model_admin),
                Middleware(
                    DownloadsMiddleware,
                    downloads=parts.downloads,
                    models=parts.model_admin,
                    kinds={backend.kind for backend in parts.settings.backends.values()},
                ),
            ],
        ),
    ]


def router(parts: Components, on_model_used: Callable[[str], None] | None = None) -> Router:
    """Every path the gateway answers: those of the adapters, and its own."""
    proxy = Proxy(parts.serving.backends, speeds=PromptSpeeds(), clock=parts.serving.clock)
    models = wrap(proxy, model_middleware(parts, on_model_used=on_model_used))
    stored = wrap(proxy, model_middleware(parts, on_model_used=on_model_used, stores=True))
    streams = wrap(proxy, model_middleware(parts, resumes=True))
    uploads = Uploads(parts.blobs, allowed=parts.settings.gateway.library.uploads_max > 0)
    adapters = load_adapters()
    routes = [*adapter_routes(adapters, models, uploads, stored, streams), *parts.admin.routes()]
    if parts.batches is not None:
        routes += parts.batches.routes(adapters, routes)
    found = Router(routes)
    if parts.batches is not None:
        parts.batches.use(found)
    parts.admin.use(found)
    return found


def entrance_middleware(parts: Components, routes: Router, secret: str | None = None) -> list[Middleware]:
    """The middleware in front of every route, outermost first. With a `secret` only what workers pass on is served."""
    settings = parts.settings.gateway
    rules = Rules(
        hosts=frozenset(name.lower() for name in settings.allowed_hosts),
        origins=frozenset(settings.cors_origins),
        open_probes=settings.open_probes,
    )
    proxied = []
    if secret is not None:
        from hostler.gateway.workers.forwarding import ForwardedMiddleware

        proxied.append(Middleware(ForwardedMiddleware, secret=secret))
    elif settings.trusted_proxies or settings.root_path:
        proxied.append(
            Middleware(ReverseProxyMiddleware, trusted=settings.trusted_proxies, root_path=settings.root_path)
        )
    return [
        *proxied,
        Middleware(
            AuthMiddleware,
            router=routes,
            fallback=OpenAIAdapter(),
            keys=parts.serving.keys,
            rules=rules,
            throttle=parts.admin.throttle,
            sessions=parts.admin.sessions,
            login_form=login_form,
        ),
    ]


class Gateway:
    """One gateway: `app` is its ASGI application, `run` serves it. Nothing runs before the application's lifespan.

    `local` is this process's own supervisor, `history` the file of past requests, `library` the file of the models that
    clients create, `presets` those it holds, and `refresh` reloads it after a change. `config_errors` returns what is wrong
    with the configuration file. `background` runs from before the start until after the end. With `workers`, these serve
    models' routes, and `app` what they pass on. Raises `ConfigError` for settings that contradict each other, and for an
    address beyond loopback without a key.
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
        config_errors: Callable[[], FileErrors | None] = lambda: None,
        apply_profiles: Apply | None = None,
        background: Sequence[Callable[[], Coroutine[Any, Any, object]]] = (),
        clock: Callable[[], float] = time.monotonic,
        workers: WorkerService | None = None,
    ) -> None:
        self._workers = workers
        self._parts = Components(
            settings,
            local=local,
            history=history,
            library=library,
            presets=presets or {},
            refresh=refresh,
            config_errors=config_errors,
            apply_profiles=apply_profiles,
            clock=clock,
            open_local=Orchestrator if workers is None else workers.open_local,
            others=None if workers is None else workers.pool,
        )
        if workers is not None:
            workers.use(self._parts)
        self._background = background
        self._server: Server | None = None
        self._stopping = False
        routes = router(self._parts, self._on_model_used)
        secret = None if workers is None else workers.secret
        self.app = _Application(
            routes=[routes], middleware=entrance_middleware(self._parts, routes, secret), lifespan=self._lifespan
        )
        self.app.state.gateway = self

    @property
    def bus(self) -> Bus:
        """Where events are published."""
        return self._parts.serving.bus

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            for run in self._background:
                tasks.start_soon(run)
            async with self._parts.running():
                yield
            tasks.cancel_scope.cancel()

    async def run(
        self, sockets: list[socket.socket], *, started: Callable[[], None] | None = None, shared: bool = False
    ) -> None:
        """Serve on these listening sockets until `stop`, then finish requests in progress. `started` is called once.

        `shared` sockets stay open in another process. Raises `ConfigError` for a socket beyond loopback without a key.
        """
        if self._parts.serving.keys is None:
            refuse_beyond_loopback(bound_addresses(sockets), key_file.default_file())
        if self._workers is not None:
            if self._stopping:
                self._workers.stop()
            await self._workers.run(self.app, sockets, started=started, foreign=shared)
            return
        settings = self._parts.settings.gateway
        self._server = Server(
            self.app,
            drain_s=settings.drain_s,
            lifespan=True,
            shared=shared,
            started_callback=started,
            certificate=server_certificate(settings.tls, "gateway.tls"),
        )
        if self._stopping:
            self._server.stop()
        await self._server.serve(sockets)

    def status(self) -> StatusView:
        """The state of the whole gateway."""
        return self._parts.admin.status()

    async def refresh_status(self) -> None:
        """Bring what other processes and gateways have of the state up to date."""
        await self._parts.admin.refresh()

    def stop(self) -> None:
        """Refuse waiting requests, finish those in progress, and return from `run`. A second call does not wait."""
        self._stopping = True
        if self._workers is None:
            self._parts.shut_down()
        else:
            self._workers.stop()
            # Waiting requests of workers are refused there, with the reason; later the host would refuse them without it.
            asyncio.get_running_loop().call_later(_REFUSE_AFTER_S, self._parts.shut_down)
        if self._server is not None:
            self._server.stop()

    def set_presets(self, presets: Mapping[str, Preset]) -> None:
        """Replace the models that clients created from others."""
        self._parts.serving.catalog.set_presets(presets)
        if self._workers is not None:
            self._workers.set_presets(presets)

    @property
    def failure(self) -> str | None:
        """Why `run` has ended although nothing had stopped it: its workers could not be started."""
        return None if self._workers is None else self._workers.failure

    def _on_model_used(self, model: str) -> None:
        self._parts.serving.catalog.set_active(model)
        if self._workers is not None:
            self._workers.on_model_used(model)

    async def drained(self, models: Sequence[str]) -> None:
        """Wait until this process's own supervisor serves none of the models, at most `gateway.drain_s`."""
        host = self._parts.serving.hosts.get(LOCAL)
        if host is None:
            return
        with anyio.move_on_after(self._parts.settings.gateway.drain_s):
            while any(host.is_serving(model) for model in models):  # noqa: ASYNC110 - an event would cost every answer
                await anyio.sleep(0.05)


class _Application(Starlette):
    """Starlette with its error handlers around the gateway's own routes only.

    Around everything they would wrap `send`, and `RequestContextMiddleware` handles the errors of models' routes.
    """

    def build_middleware_stack(self) -> ASGIApp:
        return wrap(ServerErrorMiddleware(ExceptionMiddleware(self.router)), self.user_middleware)
