"""Carries out what the scheduler of one host decides: orders to its supervisor, and turns for those who wait."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable

import anyio
import msgspec
from anyio.abc import TaskGroup

from hostler.adapters.canonical import Progress
from hostler.adapters.errors import BackendUnavailable, Busy, GatewayError, ModelUnavailable, Waited
from hostler.gateway.events import EngineChanged, Event, HostChanged, SwitchChanged
from hostler.gateway.settings import QueueSettings, SwitchingSettings
from hostler.gateway.switching.explain import explain
from hostler.gateway.switching.scheduler import Effect, Grant, Refuse, Scheduler, SchedulerRules, Switch, Unload
from hostler.gateway.switching.waiting import Ticket
from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    HostStatus,
    ModelChanged,
    ModelStatus,
    Snapshot,
    StaleEpoch,
    Supervisor,
    SupervisorError,
    SupervisorEvent,
    SupervisorUnreachable,
    SwitchMoved,
    UnknownProfile,
)

logger = logging.getLogger(__name__)

#: A subscription that ended is taken up again after this long, in seconds.
_RESUBSCRIBE_S = 1.0


class Turn:
    """A place in line for a model, and later the lease of it. Whoever asked gives it back, whatever happened."""

    __slots__ = (
        "_address",
        "_error",
        "_event",
        "_keep_alive_s",
        "_owner",
        "asked_at",
        "id",
        "model",
        "switch_s",
        "waited_s",
    )

    def __init__(
        self, owner: Orchestrator, turn_id: int, model: str, asked_at: float, keep_alive_s: float | None
    ) -> None:
        self._owner = owner
        self._address: EngineAddress | None = None
        self._error: GatewayError | None = None
        self._event: anyio.Event | None = None
        self._keep_alive_s = keep_alive_s
        self.id = turn_id
        self.model = model
        self.asked_at = asked_at
        self.waited_s = 0.0
        self.switch_s = 0.0

    @property
    def settled(self) -> bool:
        """Whether the waiting is over, one way or the other."""
        return self._address is not None or self._error is not None

    async def wait(self, seconds: float) -> bool:
        """Wait until the turn has come or been refused, at most `seconds`. Returns `settled`."""
        if not self.settled:
            if self._event is None:
                self._event = anyio.Event()
            with anyio.move_on_after(max(0.0, seconds)):
                await self._event.wait()
        return self.settled

    def address(self) -> EngineAddress:
        """Where the model listens. Raises the reason if the turn was refused."""
        if self._error is not None:
            raise self._error
        assert self._address is not None, "the turn has not come yet"
        return self._address

    def progress(self) -> Progress:
        """What is being waited for, now."""
        return self._owner.progress(self)

    def estimate_s(self) -> float:
        """In how many seconds a request for the model that comes now would be served."""
        return self._owner.estimate(self.model)

    def give_back(self) -> None:
        """The lease ends, or the place in line is left. A second time does nothing."""
        self._owner.give_back(self, self._keep_alive_s)

    def grant(self, address: EngineAddress) -> None:
        self._address = address
        self._settle()

    def refuse(self, error: GatewayError) -> None:
        self._error = error
        self._settle()

    def _settle(self) -> None:
        if self._event is not None:
            self._event.set()


class Orchestrator:
    """One host: its scheduler, its supervisor, and the addresses of its engines.

    `changed` is told every new status, `release` every address whose engine is about to stop: connections to it
    must be closed first, since an engine with an open one takes its time to end. All methods but `run` and
    `unload` are plain calls, atomic by themselves.
    """

    def __init__(
        self,
        name: str,
        supervisor: Supervisor,
        *,
        queue: QueueSettings,
        switching: SwitchingSettings,
        publish: Callable[[Event], None],
        changed: Callable[[HostStatus], None],
        release: Callable[[EngineAddress], None],
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._supervisor = supervisor
        self._scheduler = Scheduler(
            SchedulerRules(
                patience_s=switching.patience_s,
                min_residency_s=switching.min_residency_s,
                max_waiting=queue.max_waiting,
                max_wait_s=queue.max_wait_s,
            )
        )
        self._publish = publish
        self._changed = changed
        self._release = release
        self._clock = clock
        # Grows from one start of the gateway to the next, so that a forgotten older one is refused.
        self._epoch = int(time.time())
        self._ids = itertools.count(1)
        self._turns: dict[int, Turn] = {}
        self._addresses: dict[str, EngineAddress] = {}
        self._loads: dict[str, tuple[float, float]] = {}
        self._moved: dict[str, SwitchMoved] = {}
        self._tasks: TaskGroup | None = None
        self._wake = anyio.Event()
        self._armed = math.inf
        self.status: HostStatus | None = None
        self.reachable = False
        self.known = anyio.Event()

    async def run(self) -> None:
        """Follow the supervisor and the clock until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._keep_time)
            while True:
                try:
                    async with self._supervisor.events() as events:
                        async for event in events:
                            await self._see(event)
                except SupervisorUnreachable as error:
                    logger.warning("%s: %s", self.name, error)
                except Exception:
                    logger.exception("%s: the supervisor's events could not be followed", self.name)
                self.heard(False)
                await anyio.sleep(_RESUBSCRIBE_S)

    def ask(self, model: str, *, client: str = "", keep_alive_s: float | None = None, priority: int = 0) -> Turn:
        """A turn for `model`: settled at once when it is loaded and free, or when nobody else may wait."""
        now = self._clock()
        turn = Turn(self, next(self._ids), model, now, keep_alive_s)
        self._turns[turn.id] = turn
        ticket = Ticket(id=turn.id, model=model, at=now, client=client, priority=priority)
        self._carry_out(self._scheduler.request(ticket, now), now)
        if not turn.settled:
            self._rearm()
        return turn

    def give_back(self, turn: Turn, keep_alive_s: float | None) -> None:
        """See `Turn.give_back`."""
        if self._turns.pop(turn.id, None) is None:
            return
        now = self._clock()
        if turn.settled:
            effects = self._scheduler.release(turn.id, now, keep_alive_s)
        else:
            effects = self._scheduler.leave(turn.id, now)
        self._carry_out(effects, now)
        self._rearm()

    def lost(self, address: EngineAddress) -> None:
        """Nobody listens at this address any more: the next request starts the model afresh."""
        known = self._addresses.get(address.model)
        if known is not None and known.generation == address.generation:
            del self._addresses[address.model]
            now = self._clock()
            self._carry_out(self._scheduler.gone(address.model, now), now)

    async def unload(self, model: str) -> None:
        """Stop `model` on request: those in line for it are refused, the answers in progress end first."""
        now = self._clock()
        self._carry_out(self._scheduler.unload(model, now), now)

    def heard(self, reachable: bool) -> None:
        """Whether the supervisor answers. While it does not, nobody waits for it."""
        if reachable is self.reachable:
            return
        self.reachable = reachable
        if not reachable:
            now = self._clock()
            self._carry_out(self._scheduler.lost(now), now)
        self._publish(HostChanged(backend=self.name, reachable=reachable, host=self.status))

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(not turn.settled for turn in self._turns.values())

    @property
    def serving(self) -> int:
        """How many requests are being answered."""
        return sum(turn.settled for turn in self._turns.values())

    def serves(self, model: str) -> bool:
        """Whether an answer of `model` is in progress."""
        return any(turn.settled and turn.model == model for turn in self._turns.values())

    def estimate(self, model: str) -> float:
        """In how many seconds a request for `model` that comes now would be served."""
        return self._scheduler.estimate(model, self._clock())

    def progress(self, turn: Turn) -> Progress:
        """What a turn waits for: the switch to its model, or its place in line."""
        now = self._clock()
        moved = self._moved.get(turn.model)
        waited_s = now - turn.asked_at
        if moved is not None and moved.phase not in ("ready", "failed"):
            return Progress(
                phase=moved.phase,
                model=turn.model,
                from_model=moved.from_models[0] if moved.from_models else None,
                position=self._scheduler.position(turn.id),
                percent=moved.percent,
                eta_s=moved.eta_s,
                waited_s=waited_s,
            )
        others = [address.model for address in self._addresses.values() if address.model != turn.model]
        return Progress(
            phase="queued",
            model=turn.model,
            from_model=others[0] if len(others) == 1 else None,
            position=self._scheduler.position(turn.id),
            eta_s=self.estimate(turn.model) or None,
            waited_s=waited_s,
        )

    # What the supervisor says

    async def _see(self, event: SupervisorEvent) -> None:
        if isinstance(event, Snapshot):
            host = await self._located(event.host)
            self.status = host
            self._changed(host)
            self.heard(True)
            now = self._clock()
            self._carry_out(self._scheduler.host(host, now), now)
            self._rearm()
            self.known.set()
            self._publish(HostChanged(backend=self.name, reachable=True, host=host))
        elif isinstance(event, ModelChanged):
            await self._model_changed(event.status)
            self._publish(EngineChanged(backend=self.name, status=event.status))
        else:
            self._moved[event.model] = event
            self._publish(SwitchChanged(backend=self.name, switch=event))

    async def _model_changed(self, status: ModelStatus) -> None:
        if self.status is not None:
            others = tuple(other for other in self.status.models if other.model != status.model)
            self.status = msgspec.structs.replace(self.status, models=(*others, status))
            self._changed(self.status)
        now = self._clock()
        known = self._addresses.get(status.model)
        if status.state == "ready":
            if (known is None or known.generation < status.generation) and await self._locate(status.model):
                now = self._clock()
                parallel = self._addresses[status.model].parallel
                self._carry_out(self._scheduler.loaded(None, status.model, now, parallel), now)
                self._rearm()
        elif status.state != "starting" and (known is None or known.generation <= status.generation):
            self._addresses.pop(status.model, None)
            self._carry_out(self._scheduler.gone(status.model, now), now)

    async def _located(self, host: HostStatus) -> HostStatus:
        """The status, with every ready model's address known; one that is gone by now counts as stopped."""
        models = []
        for status in host.models:
            known = self._addresses.get(status.model)
            if status.state == "ready" and (known is None or known.generation != status.generation):
                if not await self._locate(status.model):
                    status = msgspec.structs.replace(status, state="stopped")
            elif status.state not in ("ready", "starting"):
                self._addresses.pop(status.model, None)
            models.append(status)
        return msgspec.structs.replace(host, models=tuple(models))

    async def _locate(self, model: str) -> bool:
        try:
            address = await self._supervisor.locate(model)
        except (SupervisorUnreachable, UnknownProfile):
            return False
        if address is None:
            return False
        known = self._addresses.get(model)
        if known is None or known.generation <= address.generation:
            self._addresses[model] = address
        return True

    # What the scheduler decides

    def _carry_out(self, effects: list[Effect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, Grant):
                self._grant(effect, now)
            elif isinstance(effect, Refuse):
                turn = self._turns.get(effect.ticket)
                if turn is not None:
                    turn.waited_s = now - turn.asked_at
                    turn.refuse(refusal(effect, self.name))
            elif self._tasks is None:
                raise RuntimeError("the orchestrator is not running")
            elif isinstance(effect, Switch):
                self._tasks.start_soon(self._switch, effect)
            else:
                self._tasks.start_soon(self._unload, effect)

    def _grant(self, grant: Grant, now: float) -> None:
        turn = self._turns.get(grant.ticket)
        if turn is None:
            return
        turn.waited_s = now - turn.asked_at
        began, ended = self._loads.get(grant.model, (0.0, 0.0))
        turn.switch_s = max(0.0, ended - max(began, turn.asked_at))
        turn.grant(self._addresses[grant.model])

    async def _switch(self, order: Switch) -> None:
        began = self._clock()
        for victim in order.evict:
            self._leave(victim)
        failure: Failure | None = None
        try:
            address = await self._supervisor.switch(order.model, evict=order.evict, epoch=self._epoch)
        except SupervisorError as error:
            failure = error.failure
        except UnknownProfile:
            failure = Failure(kind="exited", message=f"{self.name} has no profile {order.model!r} any more")
        except StaleEpoch:
            failure = Failure(kind="cancelled", message=f"another gateway has taken over {self.name}")
        except SupervisorUnreachable:
            failure = Failure(kind="exited", message=f"the supervisor of {self.name} does not answer")
        except Exception as error:
            logger.exception("%s: switching to %s failed", self.name, order.model)
            failure = Failure(kind="exited", message=f"{type(error).__name__} while switching")
        now = self._clock()
        if failure is None:
            self._addresses[order.model] = address
            self._loads[order.model] = (began, now)
            self._carry_out(self._scheduler.loaded(order.id, order.model, now, address.parallel), now)
        else:
            logger.warning("%s: %s could not be loaded: %s", self.name, order.model, failure.message)
            self._carry_out(self._scheduler.failed(order.id, order.model, now, failure), now)
        self._rearm()

    async def _unload(self, order: Unload) -> None:
        self._leave(order.model)
        try:
            await self._supervisor.unload(order.model, epoch=self._epoch)
        except (SupervisorError, SupervisorUnreachable, UnknownProfile, StaleEpoch) as error:
            logger.warning("%s: %s could not be stopped: %s", self.name, order.model, error)
        now = self._clock()
        self._carry_out(self._scheduler.gone(order.model, now), now)
        self._rearm()

    def _leave(self, model: str) -> None:
        """Close what is open to an engine that is about to stop."""
        address = self._addresses.pop(model, None)
        if address is not None:
            self._release(address)

    # Time

    def _rearm(self) -> None:
        due = self._scheduler.next_deadline()
        if due is not None and due < self._armed:
            self._wake.set()

    async def _keep_time(self) -> None:
        while True:
            due = self._scheduler.next_deadline()
            self._armed = math.inf if due is None else due
            self._wake = anyio.Event()
            with anyio.move_on_after(max(0.0, self._armed - self._clock())):
                await self._wake.wait()
            now = self._clock()
            if now >= self._armed:
                self._carry_out(self._scheduler.tick(now), now)


def refusal(refuse: Refuse, host: str) -> GatewayError:
    """A refused turn as the error that its client is told."""
    model, after = refuse.model, refuse.retry_after_s
    if refuse.cause == "queue_full":
        return Busy(
            f"{host} is busy and its queue is full; try again in about {max(1, math.ceil(after))} seconds",
            retry_after_s=after,
            model=model,
        )
    if refuse.cause == "wait_limit":
        return Waited(
            f"{model} could not be had in time (gateway.queue.max_wait_s); try again, or use a model that is running",
            retry_after_s=after,
            model=model,
        )
    if refuse.cause == "host_gone":
        return BackendUnavailable(
            f"the supervisor of {host} does not answer; start it with `hostler supervisor` on that machine",
            backend=host,
            retry_after_s=after,
        )
    if refuse.cause == "unknown_model":
        return ModelUnavailable(f"{host} has no profile {model!r} any more", model=model)
    if refuse.cause == "unloaded":
        return ModelUnavailable(f"{model} was unloaded on request; ask again to load it", model=model)
    if refuse.cause == "does_not_fit":
        return ModelUnavailable(
            f"{model} can never fit into the memory budget of {host}; raise supervisor.memory_budget or give the "
            "profile a smaller size",
            model=model,
        )
    return ModelUnavailable(explain(model, host, refuse.failure), retry_after_s=after or None, model=model)
