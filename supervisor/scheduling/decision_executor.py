"""Carries out what the scheduler of a host decides."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import anyio
import msgspec
from anyio.abc import TaskGroup

from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    SlotAssignment,
    Supervisor,
    SupervisorError,
    SupervisorUnreachable,
    SupportsPreparing,
    SupportsSlots,
    UnknownProfile,
)
from hostler.supervisor.scheduling.errors import refusal_error
from hostler.supervisor.scheduling.events import HostChanged, HostEvent, QueueChanged
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.progress import SwitchSpan
from hostler.supervisor.scheduling.queue_events import QueueEvents
from hostler.supervisor.scheduling.scheduled_host import ScheduledHost
from hostler.supervisor.scheduling.types import (
    Decision,
    Grant,
    PrepareNext,
    RefusalReason,
    Refuse,
    Revoke,
    SchedulerSettings,
    StartSwitch,
    Unload,
)

logger = logging.getLogger(__name__)


class DecisionExecutor(ScheduledHost):
    """Grants and refuses leases, and has the supervisor switch and unload. See `Orchestrator` for its arguments."""

    def __init__(
        self,
        name: str,
        supervisor: Supervisor,
        *,
        settings: SchedulerSettings,
        publish: Callable[[HostEvent], None],
        on_stopping: Callable[[EngineAddress], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(name, supervisor, settings, clock)
        self._supervisor = supervisor
        self._slots = supervisor if isinstance(supervisor, SupportsSlots) else None
        self._preparing = supervisor if isinstance(supervisor, SupportsPreparing) else None
        self._publish = publish
        self._on_stopping = on_stopping
        self._stops: dict[str, anyio.Event] = {}
        self._tasks: TaskGroup | None = None
        self._following: anyio.CancelScope | None = None
        self._queue_events = QueueEvents(lambda: publish(self._queue_event()), self._progress)
        self._wake = anyio.Event()
        self._armed = math.inf

    def set_reachable(self, reachable: bool) -> None:
        """Whether the supervisor answers. While it does not, queues are refused, and its events are subscribed to
        anew."""
        if reachable is self.reachable:
            return
        self.reachable = reachable
        if not reachable:
            now = self._clock()
            self._progress.clear()
            self._carry_out(self._scheduler.supervisor_lost(now), now)
            if self._following is not None:
                # A failed call proves more than a silent connection; only a new snapshot shows the host's state.
                self._following.cancel()
        self._publish(HostChanged(backend=self.name, reachable=reachable, host=self.status))

    def _queue_event(self) -> QueueChanged:
        return QueueChanged(backend=self.name, waiting=self.queue(), serving=self.serving)

    def _carry_out(self, decisions: list[Decision], now: float, load_error: RefusalReason | None = None) -> None:
        """Carry the decisions out. `load_error` is the reason of a failed load that was not the engine's fault."""
        queue_moved = False
        for decision in decisions:
            if isinstance(decision, Grant | Refuse):
                lease = self._leases.get(decision.ticket)
                if lease is None:
                    continue
                queue_moved = queue_moved or lease.queued
                lease.record_wait(now)
                if isinstance(decision, Grant):
                    self._grant(lease, self._addresses.of_ready(decision.model))
                    continue
                if load_error is not None and decision.reason == "load_failed":
                    decision = msgspec.structs.replace(decision, reason=load_error)
                if decision.model_lease is not None:
                    left_s = max(0.0, decision.model_lease.expires_at - time.time())
                    decision = msgspec.structs.replace(decision, retry_after_s=left_s)
                lease.refuse(refusal_error(decision, self.name, self.status), decision)
            elif isinstance(decision, Revoke):
                if (lease := self._leases.get(decision.ticket)) is not None and lease.revoked is None:
                    lease.revoke("preempted")
            elif self._tasks is None:
                raise RuntimeError("the orchestrator is not running")
            elif isinstance(decision, StartSwitch):
                self._tasks.start_soon(self._switch, decision)
            elif isinstance(decision, PrepareNext):
                self._tasks.start_soon(self._prepare_next, decision)
            else:
                self._stops.setdefault(decision.model, anyio.Event())
                self._tasks.start_soon(self._unload, decision)
        if queue_moved:
            self._queue_events.publish(self._tasks)

    def _grant(self, lease: Lease, address: EngineAddress) -> None:
        """Grant the lease, with the slot of its conversation; at once, unless conversations have to be moved for that."""
        if lease.prompt is not None and self._slots is not None:
            lease.assignment = self._slots.assign_slot(address.model, address.generation, lease.prompt)
        if lease.assignment is not None:
            lease.slot = lease.assignment.slot
            if not lease.assignment.prepared and self._tasks is not None:
                self._tasks.start_soon(self._prepare_slot, lease, lease.assignment, address)
                return
        lease.grant(address)

    async def _prepare_slot(self, lease: Lease, assignment: SlotAssignment, address: EngineAddress) -> None:
        try:
            await assignment.prepare()
        except Exception:
            # The engine then reads the whole prompt.
            logger.exception("%s: preparing a slot for %s failed", self.name, address.model)
        if self.holds(lease):
            lease.record_wait(self._clock())
            lease.grant(address)

    async def _switch(self, order: StartSwitch) -> None:
        switch = self._switch_spans[order.model] = SwitchSpan(self._clock())
        for victim in order.evict:
            self._close_connections(victim)
        failure: Failure | None = None
        load_error: RefusalReason | None = None
        try:
            address = await self._addresses.switch_to(order.model, evict=order.evict)
        except SupervisorError as error:
            failure = error.failure
        except (UnknownProfile, SupervisorUnreachable) as error:
            failure = Failure(kind="cancelled", message=str(error))
            load_error = self._order_failed(error)
        except Exception as error:
            logger.exception("%s: switching to %s failed", self.name, order.model)
            failure = Failure(kind="exited", message=f"{type(error).__name__} while switching")
        now = self._clock()
        switch.ended = now
        if failure is None:
            self._addresses.put(address)
            self._carry_out(self._scheduler.loaded(order.id, order.model, now, address.parallel), now)
        else:
            logger.warning("%s: loading %s failed: %s", self.name, order.model, failure.message)
            self._carry_out(self._scheduler.load_failed(order.id, order.model, now, failure), now, load_error)
        self._rearm()

    async def _prepare_next(self, order: PrepareNext) -> None:
        if self._preparing is None:
            return
        try:
            await self._preparing.prepare_next(order.model, start=order.start)
        except SupervisorError as error:
            if order.model is not None:
                now = self._clock()
                self._carry_out(self._scheduler.prepare_failed(order.model, now, error.failure), now)
                self._rearm()
        except (UnknownProfile, SupervisorUnreachable):
            return  # the switch reports it

    def _order_failed(self, error: UnknownProfile | SupervisorUnreachable) -> RefusalReason:
        """Why an order was refused or not received."""
        if isinstance(error, UnknownProfile):
            return "unknown_model"
        self.set_reachable(False)
        return "host_gone"

    async def _unload(self, order: Unload) -> None:
        self._close_connections(order.model)
        try:
            await self._supervisor.unload(order.model)
        except (SupervisorError, SupervisorUnreachable, UnknownProfile) as error:
            logger.warning("%s: unloading %s failed: %s", self.name, order.model, error)
        except Exception:
            logger.exception("%s: unloading %s failed", self.name, order.model)
        finally:
            stopped = self._stops.pop(order.model, None)
            if stopped is not None:
                stopped.set()
        now = self._clock()
        self._carry_out(self._scheduler.unloaded(order.model, now), now)
        self._rearm()

    def _close_connections(self, model: str) -> None:
        """Have the connections to an engine that is about to stop closed."""
        address = self._addresses.remove(model)
        if address is not None:
            self._on_stopping(address)

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
