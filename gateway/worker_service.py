"""A gateway's worker processes, and what its main process does for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import TaskGroup

from hostler import __version__
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.components import Components
from hostler.gateway.events import BreakerChanged, Event, ModelsChanged
from hostler.gateway.key_usage import KeyAdmission
from hostler.gateway.server.http_protocol import Limits
from hostler.gateway.server.server import Server, bind, server_certificate, spreads_connections
from hostler.gateway.settings import LOCAL
from hostler.gateway.workers import log_entries
from hostler.gateway.workers.accounts import WorkerAccounts
from hostler.gateway.workers.breaker_hints import breaker_hint, follow_breaker
from hostler.gateway.workers.frames import (
    LOCAL_SILENCE_S,
    ActiveModel,
    AdmitKey,
    BreakerHint,
    ConversationAnswered,
    FinishedRequest,
    FrameFromWorker,
    HostsJoined,
    KeyAdmitted,
    LogEntry,
    ModelsRefreshed,
    MoneyReserved,
    PresetsReplaced,
    RecordedTranscript,
    RefreshModels,
    ReserveMoney,
    ServerModels,
    SettleKey,
    SettleMoney,
    SpendingChanged,
    SpendingState,
    WorkerStart,
)
from hostler.gateway.workers.listeners import Listeners
from hostler.gateway.workers.pool import WorkerHandler, WorkerPool
from hostler.gateway.workers.private_folder import private_folder
from hostler.gateway.workers.process import WorkerProcess
from hostler.profiles.presets import Preset
from hostler.supervisor.api import create_app as create_api
from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.scheduling.events import HostEvent
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.types import SchedulerSettings

if TYPE_CHECKING:
    from hostler.supervisor.manager import EngineManager

logger = logging.getLogger(__name__)

#: Heads that workers pass on are a little larger than those they accept.
_LIMITS: Final = Limits(head_bytes=96 * 1024, headers=110)

#: What is spent is reported to workers at most this often, in seconds.
_REPORT_S: Final = 0.02
#: How many conversations a worker knows of when it starts.
_CONVERSATIONS: Final = 2000

#: Time for the workers' connections to the supervisor to end, in seconds.
_SUPERVISOR_DRAIN_S: Final = 1.0


class WorkerService:
    """`count` workers of a gateway, which serve its models' routes on its listening sockets.

    The main process answers everything else, which workers pass on to it, owns the supervisor of this machine (`local`)
    and counts for all. Give `open_local`, `pool` and `on_model_used` to the `Components`, then call `use`. `failure` says
    after `run` why the workers could not be started.
    """

    def __init__(self, count: int, *, local: EngineManager | None) -> None:
        self.secret = secrets.token_urlsafe(32)
        self.failure: str | None = None
        self.pool = WorkerPool(count, make_start=self._start_of, make_handler=self._serve_worker)
        self._token = secrets.token_urlsafe(32)
        self._local = local
        self._leases: LeaseServer | None = None
        self._components: Components | None = None
        self._tasks: TaskGroup | None = None
        self._folder = Path()
        self._listeners: Listeners | None = None
        self._server: Server | None = None
        self._active: str | None = None
        self._following = 0
        self._answered_by = 0
        self._reporting = False
        self._foreign = self._at_once = False
        self._stopping = anyio.Event()

    def open_local(
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
        """The host of this machine, whose leases the workers get as well."""
        self._leases = LeaseServer(
            supervisor,
            settings=settings,
            name=name,
            publish=publish,
            on_status=on_status,
            on_stopping=on_stopping,
            clock=clock,
            silence_s=LOCAL_SILENCE_S,
        )
        return self._leases.host

    def use(self, components: Components) -> None:
        """The gateway's parts, which the workers share."""
        self._components = components
        components.serving.bus.listen(self._on_event)
        components.serving.chain.spending.on_change = self._on_spending
        if components.conversations is not None:
            components.conversations.on_remembered = lambda answered: self.pool.broadcast(
                ConversationAnswered(answered), but=self._answered_by
            )
        components.on_hosts = lambda hosts: self.pool.broadcast(HostsJoined(tuple(hosts)))

    def set_presets(self, presets: Mapping[str, Preset]) -> None:
        """Clients have created other models."""
        self.pool.broadcast(PresetsReplaced(dict(presets)))

    def on_model_used(self, model: str, worker: int = 0) -> None:
        """A model is in use, in this process or in that worker."""
        if model != self._active:
            self._active = model
            self.pool.broadcast(ActiveModel(model), but=worker)

    async def run(
        self, app: ASGIApp, sockets: Sequence[socket.socket], *, started: Callable[[], None] | None, foreign: bool
    ) -> None:
        """Have workers serve on these listening sockets until `stop`, while `app` answers what they pass on.

        `started` is called once all of them accept connections. `foreign` sockets stay open in another process.
        """
        settings = self._parts.settings.gateway
        server_certificate(settings.tls, "gateway.tls")  # raises now rather than in each worker
        self._foreign = foreign
        error: Exception | None = None
        with private_folder() as folder, contextlib.ExitStack() as cleanup:
            self._folder = folder
            listeners = self._listeners = Listeners(
                sockets, self.pool.count, is_spread=spreads_connections, foreign=foreign
            )
            cleanup.callback(listeners.remove_paths)
            cleanup.callback(listeners.close)
            ready = anyio.Event()
            private = bind([(str(folder / "main"), 0)], "the folder for temporary files")
            self._server = Server(
                app, drain_s=settings.drain_s, lifespan=True, started_callback=ready.set, limits=_LIMITS
            )
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._run_workers, ready, started)
                try:
                    await self._server.serve(private)
                except Exception as raised:
                    error = raised
                tasks.cancel_scope.cancel()
        if error is not None:
            raise error

    def stop(self) -> None:
        """Have the workers finish their requests, then end `run`. A second call does not wait."""
        self._at_once = self._stopping.is_set()
        self._stopping.set()
        self.pool.stop(shared=self._foreign)
        if self._listeners is not None:
            self._listeners.close()

    async def _run_workers(self, ready: anyio.Event, started: Callable[[], None] | None) -> None:
        """Run the workers while this process serves what they pass on, and end that once they have ended."""
        assert self._server is not None
        await ready.wait()
        async with anyio.create_task_group() as tasks, self._supervisor_served():
            tasks.start_soon(self._announce, started)
            tasks.start_soon(self._limit_stop)
            self.failure = await self.pool.run()
            tasks.cancel_scope.cancel()
        self._server.stop()
        if self._at_once:
            self._server.stop()

    async def _announce(self, started: Callable[[], None] | None) -> None:
        await self.pool.started.wait()
        logger.info("%d workers serve models", self.pool.count)
        if started is not None:
            started()

    async def _limit_stop(self) -> None:
        await self._stopping.wait()
        await self.pool.ended(self._parts.settings.gateway.drain_s)

    @contextlib.asynccontextmanager
    async def _supervisor_served(self) -> AsyncIterator[None]:
        """Serves this machine's supervisor to the workers."""
        if self._leases is None or self._local is None:
            yield
            return
        api = create_api(self._local, self._leases, token=self._token, logs=self._local.logs)
        sockets = bind([(str(self._folder / "supervisor"), 0)], "the folder for temporary files")
        server, ended = Server(api, drain_s=_SUPERVISOR_DRAIN_S), anyio.Event()

        async def serve() -> None:
            try:
                await server.serve(sockets)
            finally:
                ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._leases.serve)
            tasks.start_soon(serve)
            try:
                yield
            finally:
                api.state.stopping.set()
                server.stop()
                with anyio.CancelScope(shield=True), anyio.move_on_after(2 * _SUPERVISOR_DRAIN_S):
                    await ended.wait()
                tasks.cancel_scope.cancel()

    # Workers.

    @property
    def _parts(self) -> Components:
        assert self._components is not None, "`use` was not called"
        return self._components

    def _start_of(self, number: int) -> WorkerStart:
        """What the worker of that number is started with."""
        parts, listeners = self._parts, self._listeners
        assert listeners is not None
        supervised = {name: host.status for name, host in parts.serving.hosts.items() if name != LOCAL}
        return WorkerStart(
            number=number,
            release=__version__,
            settings=parts.settings,
            keys_needed=parts.serving.keys is not None,
            sockets=tuple(each.fileno() for each in listeners.of(number)),
            others={each: tuple(sock.fileno() for sock in own) for each, own in listeners.of_others(number).items()},
            forward_to=str(self._folder / "main"),
            secret=self.secret,
            supervisor=None if self._leases is None else (f"unix:{self._folder / 'supervisor'}", self._token),
            presets=dict(parts.serving.catalog.presets),
            models={name: view.models for name, view in parts.discovery.views.items() if view.models},
            profiles={name: parts.profiles_of(name) for name in supervised},
            joined=parts.joining.wanted,
            active=self._active,
            spending=self._spending_state(),
            log_level=logging.getLogger().getEffectiveLevel(),
            conversations=None
            if parts.conversations is None
            else (parts.conversations.secret, parts.conversations.latest(_CONVERSATIONS)),
        )

    def _serve_worker(self, worker: WorkerProcess) -> WorkerHandler:
        return _Handler(self, self._parts, worker)

    def start_soon(self, work: Callable[..., Coroutine[Any, Any, None]], frame: object) -> None:
        """Do what a worker has asked for, and what may take a while. Its errors are logged, and end nothing else."""
        if self._tasks is not None:
            self._tasks.start_soon(_logging_errors, work, frame)

    def follow_breaker(self, hint: BreakerHint, worker: int) -> None:
        """A breaker has opened or closed in a worker: it does here, and in all others."""
        serving = self._parts.serving
        self._following = worker
        try:
            follow_breaker(serving.chain.hops, hint, serving.clock())
        finally:
            self._following = 0

    def on_conversation(self, frame: ConversationAnswered, worker: int) -> None:
        """A host has answered a prompt to a worker."""
        if (places := self._parts.conversations) is not None:
            self._answered_by = worker
            try:
                places.add(frame.answered)
            finally:
                self._answered_by = 0

    def _on_event(self, event: Event) -> None:
        serving = self._parts.serving
        if isinstance(event, BreakerChanged) and event.state != "half_open":
            self.pool.broadcast(breaker_hint(serving.chain.hops, event, serving.clock()), but=self._following)
        elif isinstance(event, ModelsChanged):
            self.pool.broadcast(ServerModels(event.backend, self._parts.discovery.views[event.backend].models))

    def _on_spending(self) -> None:
        """Report what is spent soon, and once for all changes until then."""
        if not self._reporting:
            self._reporting = True
            asyncio.get_running_loop().call_later(_REPORT_S, self._report_spending)

    def _report_spending(self) -> None:
        self._reporting = False
        self.pool.broadcast(SpendingChanged(self._spending_state()))

    def _spending_state(self) -> SpendingState:
        spending = self._parts.serving.chain.spending
        elsewhere = spending.today - sum(spending.day.spent.values())
        return SpendingState(spending.day, elsewhere, spending.in_progress, spending.open_requests)


class _Handler(WorkerHandler):
    """What the main process does for one worker."""

    def __init__(self, service: WorkerService, parts: Components, worker: WorkerProcess) -> None:
        self._service = service
        self._parts = parts
        self._worker = worker
        self._accounts = WorkerAccounts(parts.key_usage, parts.serving.chain.spending)

    def receive(self, frame: FrameFromWorker) -> None:
        parts, worker = self._parts, self._worker
        match frame:
            case FinishedRequest():
                parts.serving.bus.publish(frame.event)
                parts.access_log.add(frame.event)
            case LogEntry():
                log_entries.handle(frame)
            case RecordedTranscript():
                if parts.transcripts is not None:
                    parts.transcripts.add(frame.transcript)
            case ActiveModel():
                parts.serving.catalog.set_active(frame.model)
                self._service.on_model_used(frame.model, worker.number)
            case BreakerHint():
                self._service.follow_breaker(frame, worker.number)
            case ConversationAnswered():
                self._service.on_conversation(frame, worker.number)
            case AdmitKey():
                self._service.start_soon(self._admit, frame)
            case SettleKey():
                self._accounts.settle_key(frame)
            case ReserveMoney():
                self._service.start_soon(self._reserve, frame)
            case SettleMoney():
                self._accounts.settle_money(frame)
            case RefreshModels():
                self._service.start_soon(self._refresh, frame)
            case _:
                raise TypeError(f"{type(frame).__name__} concerns the process itself")

    def close(self) -> None:
        self._accounts.close()

    # A worker waits for each answer, and its client with it: there is one whatever fails.

    async def _admit(self, frame: AdmitKey) -> None:
        admission = KeyAdmission(refused="this request could not be counted; try again", retry_after_s=1.0)
        try:
            admission = await self._accounts.admit(frame)
        finally:
            self._worker.send(KeyAdmitted(frame.number, admission))

    async def _reserve(self, frame: ReserveMoney) -> None:
        reserved = False
        try:
            reserved = await self._accounts.reserve_money(frame)
        finally:
            self._worker.send(MoneyReserved(frame.number, reserved))

    async def _refresh(self, frame: RefreshModels) -> None:
        asked = False
        try:
            asked = await self._parts.discovery.refresh()
        finally:
            self._worker.send(ModelsRefreshed(frame.number, asked))


async def _logging_errors(work: Callable[..., Coroutine[Any, Any, None]], frame: object) -> None:
    try:
        await work(frame)
    except Exception:
        logger.exception("%s could not be answered", type(frame).__name__)
