"""Carries out what the scheduler of one host decides: orders to its supervisor, and turns for those who wait."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

import anyio
import msgspec
from anyio.abc import TaskGroup

from hostler.adapters.errors import GatewayError, ModelUnavailable, ShuttingDown
from hostler.adapters.types import Progress, Usage
from hostler.gateway.config import QueueSettings, SwitchingSettings
from hostler.gateway.context import NO_MORE
from hostler.gateway.events import EngineChanged, Event, HostChanged, QueueChanged, SwitchChanged, Waiting
from hostler.gateway.scheduling.engines import EngineAddresses
from hostler.gateway.scheduling.errors import no_profile, overtaken, refusal, silent
from hostler.gateway.scheduling.estimates import Forecast
from hostler.gateway.scheduling.lease import Lease
from hostler.gateway.scheduling.progress import PLACES_S, QueueProgress
from hostler.gateway.scheduling.queue import Ticket
from hostler.gateway.scheduling.scheduler import Scheduler
from hostler.gateway.scheduling.types import Effect, Grant, Refuse, SchedulerRules, Switch, Unload
from hostler.gateway.scheduling.views import Nearness, SchedulerView
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
    SupportsPinning,
    UnknownProfile,
)

logger = logging.getLogger(__name__)

#: A subscription that ended is taken up again after this long, in seconds.
_RESUBSCRIBE_S = 0.25


class Orchestrator:
    """One host: its scheduler, its supervisor, and the addresses of its engines.

    `changed` is told every new status, `release` every address whose engine is about to stop: connections to it
    must be closed first, since an engine with an open one takes its time to end. All methods but `run` and
    `unload` are plain calls, atomic by themselves: a request for a loaded model costs a few look-ups, whatever else
    the host is at.
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
        self._turns: dict[int, Lease] = {}
        self._addresses = EngineAddresses(supervisor)
        self._loads: dict[str, tuple[float, float]] = {}
        self._outlook = QueueProgress(self._scheduler, self._turns)
        self._stops: dict[str, anyio.Event] = {}
        self._first_answers: dict[str, EngineAddress] = {}
        self._tasks: TaskGroup | None = None
        self._following: anyio.CancelScope | None = None
        self._telling = False
        self._wake = anyio.Event()
        self._armed = math.inf
        self._stopping = False
        self.status: HostStatus | None = None
        self.reachable = False
        self.known = anyio.Event()

    async def run(self) -> None:
        """Follow the supervisor and the clock until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._keep_time)
            while True:
                with anyio.CancelScope() as self._following:
                    await self._follow()
                self.heard(False)
                await anyio.sleep(_RESUBSCRIBE_S)

    async def _follow(self) -> None:
        try:
            async with self._supervisor.events() as events:
                async for event in events:
                    await self._see(event)
        except SupervisorUnreachable as error:
            logger.warning("%s: %s", self.name, error)
        except Exception:
            logger.exception("%s: the supervisor's events could not be followed", self.name)

    def ask(
        self,
        model: str,
        *,
        client: str = "",
        request_id: str = "",
        keep_alive_s: float | None = None,
        priority: int = 0,
    ) -> Lease:
        """A turn for `model`: settled at once when it is loaded and free, or when nobody else may wait."""
        now = self._clock()
        turn = Lease(
            self, turn_id=next(self._ids), model=model, asked_at=now, client=client, request_id=request_id,
            keep_alive_s=keep_alive_s,
        )  # fmt: skip
        self._turns[turn.id] = turn
        ticket = Ticket(id=turn.id, model=model, at=now, client=client, priority=priority)
        self._carry_out(self._scheduler.request(ticket, now), now)
        if not turn.settled and self._stopping:
            turn.refuse(ShuttingDown(NO_MORE))
            self._carry_out(self._scheduler.leave(turn.id, now), now)
        if not turn.settled:
            turn.queued = True
            self._tell_queue(now)
            self._rearm()
        return turn

    def stop(self) -> None:
        """Refuse those who wait, and from now on whoever would have to. Leases go on until they are given back."""
        self._stopping = True
        now = self._clock()
        waiting = [turn for turn in self._turns.values() if not turn.settled]
        # All are refused before the first one leaves its place, or that would be given to the next of them.
        for turn in waiting:
            self._clock_out(turn, now)
            turn.refuse(ShuttingDown(NO_MORE))
        for turn in waiting:
            self._carry_out(self._scheduler.leave(turn.id, now), now)
        if waiting:
            self._tell_queue(now)
            self._rearm()

    def give_back(self, turn: Lease) -> None:
        """See `Lease.give_back`."""
        if self._turns.pop(turn.id, None) is None:
            return
        now = self._clock()
        if turn.settled:
            effects = self._scheduler.release(turn.id, now, turn.keep_alive_s)
        else:
            self._clock_out(turn, now)
            effects = self._scheduler.leave(turn.id, now)
        self._carry_out(effects, now)
        if not turn.settled:
            self._tell_queue(now)
        self._rearm()

    def answered(self, address: EngineAddress, usage: Usage | None) -> None:
        """An answer has ended. The supervisor hears of the first one of each process, which shows what it remembered."""
        told = self._first_answers.get(address.model) == address
        self._first_answers[address.model] = address
        if not told and usage is not None and self._tasks is not None:
            self._tasks.start_soon(self._tell_answered, address, usage)

    async def _tell_answered(self, address: EngineAddress, usage: Usage) -> None:
        try:
            await self._supervisor.answered(
                address.model, generation=address.generation, cached=usage.cached_tokens, prompt=usage.prompt_tokens
            )
        except (SupervisorError, SupervisorUnreachable, UnknownProfile, StaleEpoch) as error:
            logger.debug("%s: %s", self.name, error)

    def lost(self, address: EngineAddress) -> None:
        """Nobody listens at this address any more: the next request starts the model afresh."""
        if self._addresses.lost(address):
            now = self._clock()
            self._carry_out(self._scheduler.gone(address.model, now), now)

    async def unload(self, model: str, *, force: bool = False) -> None:
        """Stop `model` on request; those in line for it are refused.

        With `force` it is stopped at once, answers in progress are cut off, and this returns when its process is gone.
        Else they end first, and this returns at once if there are any.
        """
        now = self._clock()
        if force:
            for turn in self._turns.values():
                turn.taken_away = turn.taken_away or (turn.leased and turn.model == model)
        self._carry_out(self._scheduler.unload(model, now, force=force), now)
        self._rearm()
        stopped = self._stops.get(model)
        if stopped is not None:
            await stopped.wait()

    def remember(self, answers: Mapping[str, Sequence[float]]) -> None:
        """How long answers of each model took before the gateway started, the oldest first: what estimates rest on."""
        self._scheduler.remember(answers)

    async def pin(self, model: str, pinned: bool) -> bool:
        """Have `model` stay loaded here whoever wants its room and however long it is idle, or let it go again.

        Whether the supervisor will remember it over a restart. Raises `GatewayError`.
        """
        if not isinstance(self._supervisor, SupportsPinning):
            raise ModelUnavailable(f"{self.name} pins models by their profiles only", model=model)
        try:
            return await self._supervisor.pin(model, pinned, epoch=self._epoch)
        except (UnknownProfile, StaleEpoch, SupervisorUnreachable) as error:
            raise self._not_obeyed(error, model) from None

    def heard(self, reachable: bool) -> None:
        """Whether the supervisor answers. While it does not, nobody waits for it, and its events are asked for anew."""
        if reachable is self.reachable:
            return
        self.reachable = reachable
        if not reachable:
            now = self._clock()
            self._outlook.forget()
            self._carry_out(self._scheduler.lost(now), now)
            if self._following is not None:
                # A call that found nobody says more than a silent connection: only a new snapshot tells how things are.
                self._following.cancel()
        self._publish(HostChanged(backend=self.name, reachable=reachable, host=self.status))

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(not turn.settled for turn in self._turns.values())

    @property
    def serving(self) -> int:
        """How many requests are being answered."""
        return sum(turn.leased for turn in self._turns.values())

    def idle_for(self, now: float) -> dict[str, float]:
        """In how many seconds each loaded model will be unloaded if nobody asks for it; those that stay are left out."""
        return {view.model: view.idle_until - now for view in self.view().models if view.idle_until is not None}

    def serves(self, model: str) -> bool:
        """Whether an answer of `model` is in progress."""
        return any(turn.leased and turn.model == model for turn in self._turns.values())

    def nearness(self, model: str) -> Nearness:
        """How near a request for `model` that comes now is to being served here."""
        return self._scheduler.nearness(model, self._clock())

    def estimate(self, turn: Lease) -> float:
        """See `Lease.estimate_s`."""
        return self._scheduler.estimate(turn.model, self._clock(), turn.id)

    def view(self) -> SchedulerView:
        """Models and tickets as the scheduler sees them; times are of the gateway's clock."""
        return self._scheduler.snapshot()

    def forecast(self, model: str) -> Forecast | None:
        """What would happen here if `model` were asked for now; `None` if this host has no such model."""
        return self._scheduler.forecast(model, self._clock())

    def queue(self) -> tuple[Waiting, ...]:
        """Who waits, in the order of service."""
        return self._outlook.queue(self._clock())

    def progress(self, turn: Lease) -> Progress:
        """See `Lease.progress`."""
        return self._outlook.progress(turn, self._clock(), self._addresses.models())

    # What the supervisor says

    async def _see(self, event: SupervisorEvent) -> None:
        if isinstance(event, Snapshot):
            if self.status is None:
                # A clock that was set back must not lock us out: who comes later counts on from what was seen.
                self._epoch = max(self._epoch, event.host.epoch + 1)
            host = await self._addresses.located(event.host, fresh=not self.reachable, replaced=self._replaced)
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
            self._outlook.moved(event)
            self._publish(SwitchChanged(backend=self.name, switch=event))

    async def _model_changed(self, status: ModelStatus) -> None:
        if self.status is not None:
            others = tuple(other for other in self.status.models if other.model != status.model)
            self.status = msgspec.structs.replace(self.status, models=(*others, status))
            self._changed(self.status)
        now = self._clock()
        known = self._addresses.of(status.model)
        if status.state == "ready":
            if (known is None or known.generation < status.generation) and await self._addresses.locate(status.model):
                now = self._clock()
                parallel = self._addresses.known(status.model).parallel
                self._carry_out(self._scheduler.loaded(None, status.model, now, parallel), now)
                self._rearm()
        elif status.state != "starting" and (known is None or known.generation <= status.generation):
            self._addresses.forget(status.model)
            if status.model not in self._stops:  # what we stop ourselves is reported when it is gone for good
                self._carry_out(self._scheduler.gone(status.model, now), now)

    def _replaced(self, model: str) -> None:
        """The address that was known counts no more: another process of the model was found, or none. Told at once, since
        who asks while others are still being looked for must not be sent there."""
        now = self._clock()
        self._carry_out(self._scheduler.gone(model, now), now)

    # What the scheduler decides

    def _carry_out(self, effects: list[Effect], now: float, refused_as: GatewayError | None = None) -> None:
        """Do it. `refused_as` is what those are told whose load has just failed, if it was not the engine's fault."""
        queue_moved = False
        for effect in effects:
            if isinstance(effect, Grant | Refuse):
                turn = self._turns.get(effect.ticket)
                if turn is None:
                    continue
                queue_moved = queue_moved or turn.queued
                self._clock_out(turn, now)
                if isinstance(effect, Grant):
                    turn.grant(self._addresses.known(effect.model))
                elif refused_as is not None and effect.cause == "load_failed":
                    turn.refuse(refused_as)
                else:
                    turn.refuse(refusal(effect, self.name, self.status))
            elif self._tasks is None:
                raise RuntimeError("the orchestrator is not running")
            elif isinstance(effect, Switch):
                self._tasks.start_soon(self._switch, effect)
            else:
                self._stops.setdefault(effect.model, anyio.Event())
                self._tasks.start_soon(self._unload, effect)
        if queue_moved:
            self._tell_queue(now)

    def _clock_out(self, turn: Lease, now: float) -> None:
        """Its waiting is over, whatever it came to: how long it was, and how much of it a switch to its model took."""
        began, ended = self._loads.get(turn.model, (0.0, 0.0))
        turn.waited_s = now - turn.asked_at
        turn.switch_s = max(0.0, min(ended, now) - max(began, turn.asked_at))

    def _tell_queue(self, now: float) -> None:
        """Say who waits: at once while they are few; of a long line, to say it takes as long as the line is."""
        if not self._outlook.crowded or self._tasks is None:
            self._say_queue()
        elif not self._telling:
            self._telling = True
            self._tasks.start_soon(self._tell_queue_soon)

    async def _tell_queue_soon(self) -> None:
        await anyio.sleep(PLACES_S)
        self._telling = False
        self._say_queue()

    def _say_queue(self) -> None:
        self._publish(QueueChanged(backend=self.name, waiting=self.queue(), serving=self.serving))

    async def _switch(self, order: Switch) -> None:
        began = self._clock()
        self._loads[order.model] = (began, math.inf)
        for victim in order.evict:
            self._leave(victim)
        failure: Failure | None = None
        told: GatewayError | None = None
        try:
            address = await self._addresses.reach(order.model, evict=order.evict, epoch=self._epoch)
        except SupervisorError as error:
            failure = error.failure
        except (UnknownProfile, StaleEpoch, SupervisorUnreachable) as error:
            failure, told = Failure(kind="cancelled", message=str(error)), self._not_obeyed(error, order.model)
        except Exception as error:
            logger.exception("%s: switching to %s failed", self.name, order.model)
            failure = Failure(kind="exited", message=f"{type(error).__name__} while switching")
        now = self._clock()
        if self._loads[order.model] == (began, math.inf):  # else it was given up, and a later one is under way
            self._loads[order.model] = (began, now)
        if failure is None:
            self._addresses.put(address)
            self._carry_out(self._scheduler.loaded(order.id, order.model, now, address.parallel), now)
        else:
            logger.warning("%s: %s could not be loaded: %s", self.name, order.model, failure.message)
            self._carry_out(self._scheduler.failed(order.id, order.model, now, failure), now, told)
        self._rearm()

    def _not_obeyed(self, error: UnknownProfile | StaleEpoch | SupervisorUnreachable, model: str) -> GatewayError:
        """What clients are told of an order that the supervisor did not take, or did not hear."""
        if isinstance(error, UnknownProfile):
            return no_profile(model, self.name)
        if isinstance(error, StaleEpoch):
            return overtaken(model, self.name)
        self.heard(False)
        return silent(self.name)

    async def _unload(self, order: Unload) -> None:
        self._leave(order.model)
        try:
            await self._supervisor.unload(order.model, epoch=self._epoch)
        except (SupervisorError, SupervisorUnreachable, UnknownProfile, StaleEpoch) as error:
            logger.warning("%s: %s could not be stopped: %s", self.name, order.model, error)
        finally:
            stopped = self._stops.pop(order.model, None)
            if stopped is not None:
                stopped.set()
        now = self._clock()
        self._carry_out(self._scheduler.unloaded(order.model, now), now)
        self._rearm()

    def _leave(self, model: str) -> None:
        """Close what is open to an engine that is about to stop."""
        address = self._addresses.forget(model)
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
