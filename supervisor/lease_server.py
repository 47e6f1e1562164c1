"""The leases of one host for gateways on other machines: all of them before one scheduler."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import anyio
import msgspec

from hostler.adapters.errors import BackendUnavailable, GatewayError
from hostler.supervisor.config import HostLimits
from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor
from hostler.supervisor.engine_client import refuses_connections
from hostler.supervisor.lease_frames import (
    DEAD_S,
    MAX_LISTED,
    PING_S,
    ClosingFrame,
    DevicesFrame,
    EngineStoppingFrame,
    HelloFrame,
    HostFrame,
    InvalidFrame,
    ModelFrame,
    PingFrame,
    QueueFrame,
    SwitchFrame,
    ViewFrame,
    WelcomeFrame,
    encode_frames,
)
from hostler.supervisor.lease_session import LeaseSession
from hostler.supervisor.scheduling.events import DevicesChanged, EngineChanged, HostChanged, HostEvent, QueueChanged
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.orchestrator import Orchestrator
from hostler.supervisor.scheduling.types import SchedulerSettings

#: Queue and models are sent to gateways at most this often, and those of a long queue less often, in seconds.
VIEW_EVERY_S, LONG_VIEW_EVERY_S = 0.1, 0.5
_LONG = 50

#: How often the places of queued requests are sent to their gateways, in seconds.
_PLACES_EVERY_S = 0.5

#: The most connected gateways.
MAX_GATEWAYS = 256

#: How often `drained` checks whether the last lease has ended, in seconds.
_DRAIN_TICK_S = 0.02

logger = logging.getLogger(__name__)


def _ignore(_: object) -> None:
    """No gateway in this process receives what happens on the host."""


class LeaseServer:
    """One host with its scheduler (`host`), and the gateways that are connected to it.

    A gateway that disconnects, falls silent or does not read leaves the queue at once. Its granted leases keep their slots
    until the engine is done with them: see `AbandonedLeases`. It gets them back if it returns before.

    `limits` are the host's own. A gateway in this process uses `host` itself, under the `name` it has there: its
    `settings` apply until other gateways connect, and it receives what happens on the host as well. `silence_s` is how long
    a gateway may be silent.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        limits: HostLimits | None = None,
        settings: SchedulerSettings | None = None,
        name: str = "this host",
        publish: Callable[[HostEvent], None] = _ignore,
        on_status: Callable[[HostStatus], None] = _ignore,
        on_stopping: Callable[[EngineAddress], None] = _ignore,
        clock: Callable[[], float] = time.monotonic,
        silence_s: float = DEAD_S,
        is_refusing: Callable[[str, int], bool] = refuses_connections,
    ) -> None:
        self._limits = limits or HostLimits()
        self.clock = clock
        self.silence_s = silence_s
        self._is_refusing = is_refusing
        self._settings = combine_limits(self._limits, (), settings or SchedulerSettings())
        self._publish = publish
        self._notify_stopping = on_stopping
        self.host = Orchestrator(
            name,
            supervisor,
            settings=self._settings,
            publish=self._on_event,
            on_status=on_status,
            on_stopping=self._on_stopping,
            clock=clock,
        )
        self._open: set[LeaseSession] = set()
        self._sessions: dict[str, LeaseSession] = {}
        self._abandoned: dict[tuple[str, int], Lease] = {}
        self._changed = anyio.Event()
        self._closed = self._paused = False

    async def run(self) -> None:
        """Schedule and keep gateways up to date until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.host.run)
            tasks.start_soon(self.serve)

    async def serve(self) -> None:
        """Keep gateways up to date until cancelled, while `host` runs elsewhere."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send_views)
            tasks.start_soon(self._tick)

    @property
    def gateways(self) -> int:
        """The number of connected gateways."""
        return len(self._sessions)

    @property
    def closing(self) -> bool:
        """Whether nothing is granted any more: the supervisor stops, or its machine falls asleep."""
        return self._closed or self._paused

    def close(self) -> None:
        """Grant nothing any more: waiting requests go elsewhere, and gateways ask for no more.

        This is announced before the refusals, so that requests without another backend wait for the next supervisor.
        """
        self._closed = True
        self._broadcast(ClosingFrame())
        self.host.stop(_stopping)

    @property
    def idle_since(self) -> float | None:
        """See `ScheduledHost`; `None` while the supervisor stops, too."""
        return None if self.closing else self.host.idle_since

    def pause(self) -> None:
        """Grant nothing while the machine falls asleep. Gateways take the host for unreachable, and wake it for requests."""
        self._paused = True
        self._broadcast(ClosingFrame())

    def resume(self) -> None:
        """Grant again, unless the supervisor stops. Connections begin anew: they may have been lost, and gateways ask again
        for what waits."""
        self._paused = False
        for session in list(self._open):
            session.close("the machine was put to sleep")

    async def drained(self, seconds: float) -> None:
        """Wait until no lease is held, at most `seconds`."""
        with anyio.move_on_after(seconds):
            while self.host.serving:  # noqa: ASYNC110 - an event would cost every answer
                await anyio.sleep(_DRAIN_TICK_S)

    # Called by sessions.

    @contextmanager
    def opened(self, session: LeaseSession) -> Iterator[None]:
        """A connection is open, whether its gateway has introduced itself or not."""
        self._open.add(session)
        try:
            yield
        finally:
            self._open.discard(session)

    def join(self, session: LeaseSession, hello: HelloFrame) -> None:
        """A gateway has introduced itself. Its earlier connection, if any, is replaced."""
        if len(self._sessions) >= MAX_GATEWAYS and hello.instance not in self._sessions:
            raise InvalidFrame(f"more than {MAX_GATEWAYS} gateways are connected")
        earlier = self._sessions.pop(hello.instance, None)
        if earlier is not None:
            self.leave(earlier, hello.instance)
            earlier.close("replaced by a new connection")
        self._sessions[hello.instance] = session
        for key, lease in list(self._abandoned.items()):
            if key[0] == hello.instance:
                del self._abandoned[key]
                if key[1] not in hello.held:
                    self.host.release(lease)
                elif self.host.resume(lease):
                    session.adopt(key[1], lease)
        self._apply_limits()
        status = self.host.status
        frames: list[msgspec.Struct] = [WelcomeFrame(0 if status is None else status.generation)]
        if status is not None and self.host.reachable:
            frames.append(HostFrame(status))
        frames += [SwitchFrame(switch) for switch in self.host.switches()]
        if self.closing:
            frames.append(ClosingFrame())
        session.send(encode_frames((*frames, *self._view_frames())))
        logger.info("gateway %s connected from %s", hello.name, session.peer)

    def leave(self, session: LeaseSession, instance: str) -> None:
        """A connection has ended: queued leases leave the queue, granted ones are abandoned."""
        if self._sessions.get(instance) is session:
            del self._sessions[instance]
        self._abandoned = {key: lease for key, lease in self._abandoned.items() if self.host.holds(lease)}
        for number, lease in session.take_leases().items():
            self.host.abandon(lease)
            if self.host.holds(lease):
                self._abandoned[instance, number] = lease
        self._apply_limits()
        self.mark_changed()

    def engine_lost(self, model: str, generation: int) -> None:
        """A gateway says that an engine refuses connections. It is believed if the engine does so from here as well."""
        address = self.host.holds_engine(model, generation)
        if address is not None and self._is_refusing(address.host, address.port):
            self.host.engine_lost(address)

    def seed_service_times(self, answers: Mapping[str, Sequence[float]]) -> None:
        """Durations of earlier answers, as far as they are of this host's models."""
        profiles = () if self.host.status is None else self.host.status.profiles
        self.host.seed_service_times(
            {profile.name: answers[profile.name] for profile in profiles if profile.name in answers}
        )

    def mark_changed(self) -> None:
        """Queue or models have changed."""
        if self._sessions:
            self._changed.set()

    def _apply_limits(self) -> None:
        limits = [session.limits for session in self._sessions.values() if session.limits is not None]
        settings = combine_limits(self._limits, limits, self._settings)
        if settings != self._settings:
            self._settings = settings
            self.host.apply_settings(settings)

    # To gateways.

    def _on_event(self, event: HostEvent) -> None:
        self._publish(event)
        if isinstance(event, HostChanged):
            if event.host is not None and event.reachable:
                self._broadcast(HostFrame(event.host))
        elif isinstance(event, EngineChanged):
            self._broadcast(ModelFrame(event.status))
        elif isinstance(event, DevicesChanged):
            self._broadcast(DevicesFrame(event.devices))
        elif not isinstance(event, QueueChanged):
            self._broadcast(SwitchFrame(event.switch))
        self.mark_changed()

    def _on_stopping(self, address: EngineAddress) -> None:
        self._broadcast(EngineStoppingFrame(address))
        self._notify_stopping(address)

    def _broadcast(self, *frames: msgspec.Struct) -> None:
        """Encoded once for all gateways."""
        if self._sessions:
            data = encode_frames(frames)
            for session in list(self._sessions.values()):
                session.send(data)

    def _view_frames(self) -> tuple[QueueFrame, ViewFrame]:
        now, waiting = self.clock(), self.host.queue()
        models = tuple(
            view if view.idle_until is None else msgspec.structs.replace(view, idle_until=view.idle_until - now)
            for view in self.host.models()
        )
        return (
            QueueFrame(waiting[:MAX_LISTED], len(waiting), self.host.serving),
            ViewFrame(models, self.host.outlooks(), self.host.conversations()),
        )

    async def _send_views(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            if self._sessions:
                self._broadcast(*self._view_frames())
            await anyio.sleep(LONG_VIEW_EVERY_S if self.host.waiting > _LONG else VIEW_EVERY_S)

    async def _tick(self) -> None:
        """Pings, places, and the end of connections that went silent."""
        beat_at = heard_at = self.clock()
        while True:
            await anyio.sleep(_PLACES_EVERY_S)
            now = self.clock()
            if now - heard_at > 2 * PING_S:
                # This process itself was suspended: it cannot know who was silent.
                for session in self._open:
                    session.excuse(now)
            heard_at = now
            for session in list(self._open):
                session.check(now)
                session.send_places()
            if now - beat_at >= PING_S - 0.1:
                beat_at = now
                self._broadcast(PingFrame())


def combine_limits(
    own: HostLimits, gateways: Iterable[SchedulerSettings], before: SchedulerSettings
) -> SchedulerSettings:
    """What applies on the host: each `own` value, else the largest of the gateways', else what applied `before`."""
    connected = list(gateways)
    values = {}
    for name in own.__struct_fields__:
        value = getattr(own, name)
        theirs = [getattr(each, name) for each in connected]
        values[name] = value if value is not None else max(theirs, default=getattr(before, name))
    values["idle_s"] = max((each.idle_s for each in connected), default=before.idle_s)
    return SchedulerSettings(**values).clamped()


def _stopping() -> GatewayError:
    return BackendUnavailable("the supervisor is stopping")
