"""What a worker process serves: models' routes, with the limits, costs and models that the main process reports."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware

from hostler.adapters.base import Operation
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.registry import load_adapters
from hostler.gateway.asgi import ASGIApp, Receive, RouteMatch, Scope, Send
from hostler.gateway.auth.middleware import WRONG_KEYS, AuthMiddleware, KeyThrottle, Rules
from hostler.gateway.auth.reverse_proxy import ReverseProxyMiddleware
from hostler.gateway.backends.prompt_reading import PromptSpeeds
from hostler.gateway.conversation_places import ConversationPlaces
from hostler.gateway.events import BreakerChanged, Event, RequestFinished
from hostler.gateway.in_flight import RequestView, request_views
from hostler.gateway.joining_hosts import JoiningHosts
from hostler.gateway.middleware.recording import RecordingMiddleware
from hostler.gateway.model_pipeline import model_middleware
from hostler.gateway.proxy import Proxy
from hostler.gateway.routing import Router, wrap
from hostler.gateway.serving import ServingComponents
from hostler.gateway.stream_store import CONVERSATION
from hostler.gateway.telemetry.transcripts import Transcript
from hostler.gateway.workers.accounts import WorkerKeyAccounts, WorkerSpending
from hostler.gateway.workers.breaker_hints import breaker_hint, follow_breaker
from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.forwarding import Forwarder
from hostler.gateway.workers.frames import (
    LOCAL_SILENCE_S,
    ActiveModel,
    BreakerHint,
    ConversationAnswered,
    FinishedRequest,
    FrameToWorker,
    HostsJoined,
    PresetsReplaced,
    RecordedTranscript,
    RefreshModels,
    ServerModels,
    SpendingChanged,
    WorkerStart,
)
from hostler.supervisor.client import ClientLimits, SupervisorClient
from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor
from hostler.supervisor.remote_host import RemoteHost
from hostler.supervisor.scheduling.events import HostEvent
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.types import SchedulerSettings

#: The start waits at most this long for supervisors, in seconds.
_FIRST_SYNC_S = 2.0

#: Operations of adapters that are answered with what is known of a model.
_ABOUT_MODELS = frozenset({"load"})

_CONVERSATION = CONVERSATION.encode()


class WorkerApp:
    """`app` is the worker's ASGI application. Pass what the main process reports to `receive`."""

    def __init__(
        self,
        start: WorkerStart,
        channel: Channel[FrameToWorker],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        settings = self._settings = start.settings
        self._channel = channel
        self._clock = clock
        self._wall = wall
        self._following = False
        self._used = start.active
        self._local = None if start.supervisor is None else _Local(*start.supervisor)
        self._spending = WorkerSpending(channel, settings.gateway.spending.daily_limit, start.spending, wall)
        self.serving = ServingComponents(
            settings,
            local=None if self._local is None else cast(Supervisor, self._local.client),
            presets=start.presets,
            on_status=_ignore_status,
            on_return=_ignore_return,
            clock=clock,
            open_local=self._open_local,
            spending=self._spending,
            keys_needed=start.keys_needed,
        )
        catalog = self.serving.catalog
        self._joining = JoiningHosts(self.serving)
        self._joining.update(start.joined)
        for host, profiles in start.profiles.items():
            catalog.restore_host(host, profiles)
        for backend, models in start.models.items():
            catalog.update_models(backend, models)
        if start.active is not None:
            catalog.set_active(start.active)
        self._places = self._conversations(start)
        self.serving.bus.listen(self._on_event)
        self.app = self._entrance(Forwarder(start.forward_to, start.secret))

    def receive(self, frame: FrameToWorker) -> None:
        """The main process reports something."""
        catalog = self.serving.catalog
        match frame:
            case ServerModels():
                catalog.update_models(frame.backend, frame.models)
            case HostsJoined():
                self._joining.update(frame.hosts)
            case PresetsReplaced():
                catalog.set_presets(frame.presets)
            case ActiveModel():
                self._used = frame.model
                catalog.set_active(frame.model)
            case SpendingChanged():
                self._spending.update(frame.state)
            case BreakerHint():
                self._follow_breaker(frame)
            case ConversationAnswered():
                if self._places is not None:
                    self._places.remember(frame.answered)
            case _:
                raise TypeError(f"{type(frame).__name__} is not for the application")

    def in_flight(self) -> tuple[RequestView, ...]:
        """The requests in flight."""
        serving = self.serving
        return request_views(serving.in_flight.contexts(), serving.hosts, offset=self._wall() - self._clock())

    def cancel(self, request_id: str) -> int:
        """Cancel the requests with this id; returns their number."""
        return self.serving.in_flight.cancel(request_id)

    def shut_down(self) -> None:
        """Refuse waiting requests, and wake those that pause between attempts."""
        self.serving.shut_down()

    def serves(self, operation: Operation) -> bool:
        """Whether a worker serves this route itself: those with a path of their own that ask a model."""
        if operation.scope != "infer" or operation.name in _ABOUT_MODELS or "{" in operation.path:
            return False
        if operation.stores and self._stores:
            return False
        return not (operation.model_info or operation.writes or operation.upload or operation.resumes)

    @property
    def _stores(self) -> bool:
        return self._settings.gateway.responses.store != "off"

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            self.serving.start(tasks)
            tasks.start_soon(self._joining.run)
            with anyio.move_on_after(_FIRST_SYNC_S):
                await self.serving.synced()
            try:
                yield
            finally:
                self.shut_down()
                with anyio.CancelScope(shield=True):
                    await self.serving.aclose()
                    if self._local is not None:
                        await self._local.client.aclose()
                tasks.cancel_scope.cancel()

    def _entrance(self, forwarder: Forwarder) -> ASGIApp:
        settings = self._settings.gateway
        router = Router(self._routes(forwarder))
        proxied = []
        if settings.trusted_proxies or settings.root_path:
            proxied.append(
                Middleware(ReverseProxyMiddleware, trusted=settings.trusted_proxies, root_path=settings.root_path)
            )
        auth = Middleware(
            AuthMiddleware,
            router=router,
            fallback=OpenAIAdapter(),
            keys=self.serving.keys,
            rules=Rules(
                hosts=frozenset(name.lower() for name in settings.allowed_hosts),
                origins=frozenset(settings.cors_origins),
                open_probes=settings.open_probes,
            ),
            throttle=KeyThrottle(limit=WRONG_KEYS, clock=self._clock),
            elsewhere=forwarder,
        )
        return wrap(Starlette(lifespan=self._lifespan), [*proxied, auth])

    def _routes(self, forwarder: Forwarder) -> list[RouteMatch]:
        proxy = Proxy(self.serving.backends, speeds=PromptSpeeds(), clock=self._clock)
        recording = []
        if self._settings.gateway.recording.contents:
            recording.append(Middleware(RecordingMiddleware, self._record))
        middleware = model_middleware(
            self.serving,
            log=self._on_finished,
            refresh=self._refresh,
            key_usage=None if self.serving.keys is None else WorkerKeyAccounts(self._channel),
            on_model_used=self._on_model_used,
        )
        app = wrap(proxy, [*recording, *middleware])
        if self._settings.gateway.streams.resume:
            app = _Resumable(app, forwarder)
        return [
            RouteMatch(operation=operation, app=app, adapter=adapter)
            for adapter in load_adapters()
            for operation in adapter.operations
            if self.serves(operation)
        ]

    def _open_local(
        self,
        name: str,
        supervisor: Supervisor,
        *,
        settings: SchedulerSettings,
        publish: Callable[[HostEvent], None],
        on_status: Callable[[HostStatus], None],
        on_stopping: Callable[[EngineAddress], None],
        clock: Callable[[], float],
    ) -> Host:
        """The host of this machine, over the main process's supervisor."""
        assert self._local is not None, "only called for a supervisor"
        return RemoteHost(
            name,
            self._local.url,
            self._local.token,
            client=self._local.client,
            limits=settings,
            publish=publish,
            on_status=on_status,
            on_stopping=on_stopping,
            clock=clock,
            connect_s=LOCAL_SILENCE_S,
            silence_s=LOCAL_SILENCE_S,
        )

    # To the main process.

    def _on_finished(self, event: RequestFinished) -> None:
        self._channel.send(FinishedRequest(event))

    def _record(self, transcript: Transcript) -> None:
        if not self._channel.crowded:
            self._channel.send(RecordedTranscript(transcript))

    async def _refresh(self) -> bool:
        asked: bool = await self._channel.call(RefreshModels)
        return asked

    def _on_model_used(self, model: str) -> None:
        self.serving.catalog.set_active(model)
        if model != self._used:
            self._used = model
            self._channel.send(ActiveModel(model))

    def _conversations(self, start: WorkerStart) -> ConversationPlaces | None:
        """Where conversations are, as far as the main process says; `None` without a cluster."""
        if start.conversations is None:
            return None
        secret, known = start.conversations
        places = ConversationPlaces(self.serving.entries, secret=secret, wall=self._wall)
        for answered in known:
            places.remember(answered)
        places.on_answered = lambda answered: self._channel.send(ConversationAnswered(answered))
        self.serving.use_hints(places)
        return places

    def _on_event(self, event: Event) -> None:
        if isinstance(event, BreakerChanged) and event.state != "half_open" and not self._following:
            self._channel.send(breaker_hint(self.serving.chain.hops, event, self._clock()))

    def _follow_breaker(self, hint: BreakerHint) -> None:
        self._following = True
        try:
            follow_breaker(self.serving.chain.hops, hint, self._clock())
        finally:
            self._following = False


class _Local:
    """The supervisor of this machine, which the main process runs."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.client = SupervisorClient(url, token, limits=ClientLimits(max_retry_s=1.0))


class _Resumable:
    """Passes requests on whose streams outlive their connection: these are kept in the main process."""

    def __init__(self, app: ASGIApp, forwarder: Forwarder) -> None:
        self.app = app
        self._forwarder = forwarder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = any(name == _CONVERSATION for name, _ in scope["headers"])
        await (self._forwarder if kept else self.app)(scope, receive, send)


def _ignore_status(name: str, status: HostStatus) -> None:
    """The main process keeps what hosts report."""


def _ignore_return(name: str) -> None:
    """The main process asks backends for their models."""
