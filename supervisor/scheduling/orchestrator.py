"""Carries out the decisions of one host's scheduler: requests to its supervisor, leases for waiting requests."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import anyio
import msgspec
from anyio.abc import TaskGroup

from hostler.adapters.canonical import Progress, Usage
from hostler.adapters.errors import GatewayError, ModelUnavailable
from hostler.supervisor.contract import (
    DevicesRead,
    DeviceStatus,
    EngineAddress,
    Failure,
    HostStatus,
    ModelChanged,
    ModelStatus,
    PromptIdentity,
    SlotAssignment,
    Snapshot,
    Supervisor,
    SupervisorError,
    SupervisorEvent,
    SupervisorUnreachable,
    SupportsPinning,
    SupportsSlots,
    SwitchMoved,
    UnknownProfile,
)
from hostler.supervisor.scheduling.abandoned import AbandonedLeases
from hostler.supervisor.scheduling.engines import EngineAddresses
from hostler.supervisor.scheduling.errors import profile_removed, refusal_error, supervisor_unreachable
from hostler.supervisor.scheduling.estimates import SwitchEstimate
from hostler.supervisor.scheduling.events import (
    DevicesChanged,
    EngineChanged,
    HostChanged,
    HostEvent,
    QueueChanged,
    SwitchChanged,
    Waiting,
)
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.progress import POSITIONS_EVERY_S, QueueProgress, SwitchSpan
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import (
    Decision,
    Grant,
    RefusalReason,
    Refuse,
    SchedulerSettings,
    StartSwitch,
    Unload,
)
from hostler.supervisor.scheduling.views import ModelView, ServiceDistance, ServiceOutlook

logger = logging.getLogger(__name__)

#: Pause before a subscription that ended is renewed, in seconds.
_RESUBSCRIBE_S = 0.25

#: After so many timeouts in a row, with no answer between them, an engine counts as hanging.
MAX_TIMEOUTS = 3


class Orchestrator:
    """One host: its scheduler, its supervisor, and the addresses of its engines.

    `on_status` receives every new status. `on_stopping` receives the address of every engine about to stop, so that
    connections to it are closed first: an engine with an open one takes its time to exit. All methods but `run`,
    `unload` and `pin` are plain calls, atomic by themselves: a request for a loaded model costs a few look-ups,
    whatever else the host is doing. `synced` is set once the first snapshot has arrived.
    """

    def __init__(
        self,
        name: str,
        supervisor: Supervisor,
        *,
        settings: SchedulerSettings,
        publish: Callable[[HostEvent], None],
        on_status: Callable[[HostStatus], None],
        on_stopping: Callable[[EngineAddress], None],
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._supervisor = supervisor
        self._slots = supervisor if isinstance(supervisor, SupportsSlots) else None
        self._scheduler = Scheduler(settings)
        self._publish = publish
        self._on_status = on_status
        self._on_stopping = on_stopping
        self._clock = clock
        self._ids = itertools.count(1)
        self._leases: dict[int, Lease] = {}
        self._addresses = EngineAddresses(supervisor)
        self._switch_spans: dict[str, SwitchSpan] = {}
        self._progress = QueueProgress(self._scheduler, self._leases)
        self._abandoned = AbandonedLeases(
            supervisor.active_requests, self._release_abandoned, self._give_up, self._leases.values, clock=clock
        )
        self._stops: dict[str, anyio.Event] = {}
        self._first_answers: dict[str, EngineAddress] = {}
        #: Timeouts in a row by model, with the generation of its engine.
        self._timeouts: dict[str, tuple[int, int]] = {}
        self._tasks: TaskGroup | None = None
        self._following: anyio.CancelScope | None = None
        self._queue_event_due = False
        self._wake = anyio.Event()
        self._armed = math.inf
        self._stopped_with: Callable[[], GatewayError] | None = None
        self.status: HostStatus | None = None
        self.reachable = self.returning = False
        self.synced = anyio.Event()

    async def run(self) -> None:
        """Follow the supervisor's events and the clock until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._keep_time)
            while True:
                with anyio.CancelScope() as self._following:
                    await self._follow()
                self.set_reachable(False)
                await anyio.sleep(_RESUBSCRIBE_S)

    async def _follow(self) -> None:
        try:
            async with self._supervisor.events() as events:
                async for event in events:
                    await self._on_event(event)
        except SupervisorUnreachable as error:
            logger.warning("%s: %s", self.name, error)
        except Exception:
            logger.exception("%s: following the supervisor's events failed", self.name)

    # Leases

    def lease(
        self,
        model: str,
        *,
        client: str = "",
        request_id: str = "",
        keep_alive_s: float | None = None,
        priority: int = 0,
        client_port: int = 0,
        prompt: PromptIdentity | None = None,
        waited_s: float = 0.0,
    ) -> Lease:
        """See `Host.lease`. `waited_s` is how long the request has waited already."""
        now = self._clock()
        lease = Lease(
            self, lease_id=next(self._ids), model=model, requested_at=now - waited_s, client=client, request_id=request_id,
            keep_alive_s=keep_alive_s, prompt=prompt,
        )  # fmt: skip
        self._leases[lease.id] = lease
        ticket = Ticket(
            id=lease.id, model=model, at=lease.requested_at, client=client, priority=priority, client_port=client_port
        )
        self._carry_out(self._scheduler.request(ticket, now), now)
        if lease.assignment is not None:
            return lease
        if not lease.settled and self._stopped_with is not None:
            lease.refuse(self._stopped_with(), self._stopping(lease))
            self._carry_out(self._scheduler.cancel(lease.id, now), now)
        if not lease.settled:
            lease.queued = True
            self._publish_queue(now)
            self._rearm()
        return lease

    def release(self, lease: Lease) -> None:
        """See `Lease.release`."""
        if self._leases.pop(lease.id, None) is None:
            return
        now = self._clock()
        self._abandoned.discard(lease)
        if lease.assignment is not None:
            lease.assignment.release()
        if lease.answered:
            self._report_answer(lease)
            self._timeouts.pop(lease.model, None)
        elif lease.timed_out:
            self._count_timeout(lease)
        if lease.settled:
            decisions = self._scheduler.release(lease.id, now, lease.keep_alive_s)
        else:
            lease.record_wait(now)
            decisions = self._scheduler.cancel(lease.id, now)
        self._carry_out(decisions, now)
        if not lease.settled:
            self._publish_queue(now)
        self._rearm()

    def stop(self, error: Callable[[], GatewayError]) -> None:
        """Refuse queued leases with `error()`, and every later one that would have to queue. Granted ones continue."""
        self._stopped_with = error
        now = self._clock()
        waiting = [lease for lease in self._leases.values() if not lease.settled and lease.assignment is None]
        # All are refused before the first one leaves the queue, or its place would be given to the next of them.
        for lease in waiting:
            lease.record_wait(now)
            lease.refuse(error(), self._stopping(lease))
        for lease in waiting:
            self._carry_out(self._scheduler.cancel(lease.id, now), now)
        if waiting:
            self._publish_queue(now)
            self._rearm()

    def abandon(self, lease: Lease) -> None:
        """The holder of the lease has vanished. A queued one leaves the queue; a granted one keeps its slot until the
        engine has stopped working for it, or `resume`."""
        if not lease.granted or self._tasks is None:
            self.release(lease)
        else:
            self._abandoned.add(lease, self._tasks)

    def _release_abandoned(self, lease: Lease) -> None:
        self.release(lease)
        self._publish_queue(self._clock())

    def _give_up(self, address: EngineAddress) -> None:
        """Stop an engine that works for vanished holders alone; what is queued for it waits for its next process."""
        if self._addresses.get(address.model) != address:
            return
        logger.warning(
            "%s: %s works for no connected gateway; stopping it for queued requests", self.name, address.model
        )
        for lease in list(self._leases.values()):
            if lease.granted and lease.address() == address and lease.revoked is None:
                lease.revoke("given_up")
        now = self._clock()
        self._on_stopping(address)
        self._addresses.mark_dead(address)
        self._carry_out(self._scheduler.give_up(address.model, now), now)

    def resume(self, lease: Lease) -> bool:
        """The holder of an abandoned lease is back. Returns whether the lease is still held."""
        self._abandoned.discard(lease)
        return self.holds(lease)

    def holds(self, lease: Lease) -> bool:
        """Whether the lease was neither released nor withdrawn."""
        return lease.id in self._leases

    def holds_engine(self, model: str, generation: int) -> EngineAddress | None:
        """The address of the model's engine, if it is of this generation."""
        address = self._addresses.get(model)
        return address if address is not None and address.generation == generation else None

    @staticmethod
    def _stopping(lease: Lease) -> Refuse:
        return Refuse(ticket=lease.id, model=lease.model, reason="stopping", retry_after_s=0.0)

    def _report_answer(self, lease: Lease) -> None:
        """Report the first answer of each process to the supervisor: it shows whether the restored slots were used."""
        address, usage = lease.address(), lease.usage
        reported = self._first_answers.get(address.model) == address
        self._first_answers[address.model] = address
        if not reported and usage is not None and self._tasks is not None:
            self._tasks.start_soon(self._send_first_answer, address, usage)

    def _count_timeout(self, lease: Lease) -> None:
        """Stop an engine that only hangs, whatever its health check says; the next request starts it again."""
        address = lease.address()
        generation, count = self._timeouts.get(lease.model, (0, 0))
        count = count + 1 if generation == address.generation else 1
        self._timeouts[lease.model] = (address.generation, count)
        if count >= MAX_TIMEOUTS and self._addresses.get(lease.model) == address and self._tasks is not None:
            logger.warning(
                "%s: %s: %d requests in a row timed out; restarting its engine", self.name, lease.model, count
            )
            del self._timeouts[lease.model]
            self._tasks.start_soon(self._stop_hanging, lease.model)

    async def _stop_hanging(self, model: str) -> None:
        try:
            await self._supervisor.unload(model)
        except (SupervisorError, SupervisorUnreachable, UnknownProfile) as error:
            logger.warning("%s: %s: its engine cannot be stopped: %s", self.name, model, error)

    async def _send_first_answer(self, address: EngineAddress, usage: Usage) -> None:
        try:
            await self._supervisor.report_first_response(
                address.model, generation=address.generation, cached=usage.cached_tokens, prompt=usage.prompt_tokens
            )
        except (SupervisorError, SupervisorUnreachable, UnknownProfile) as error:
            logger.debug("%s: %s", self.name, error)

    def engine_lost(self, address: EngineAddress) -> None:
        """Nothing listens at this address any more: the next request starts a new process."""
        if self._addresses.mark_dead(address):
            now = self._clock()
            self._carry_out(self._scheduler.process_ended(address.model, now), now)

    # Operations

    async def unload(self, model: str, *, force: bool = False) -> None:
        """Refuse the model's queue and stop the model.

        Its running answers end first, and this returns at once if there are any. With `force` they are cut off, and
        this returns when the process is gone.
        """
        now = self._clock()
        if force:
            for lease in list(self._leases.values()):
                if lease.granted and lease.model == model and lease.revoked is None:
                    lease.revoke("unloaded")
        self._carry_out(self._scheduler.unload(model, now, force=force), now)
        self._rearm()
        stopped = self._stops.get(model)
        if stopped is not None:
            await stopped.wait()

    def apply_settings(self, settings: SchedulerSettings) -> None:
        """Apply changed limits; queued tickets stay queued."""
        now = self._clock()
        self._carry_out(self._scheduler.apply_settings(settings, now), now)
        self._rearm()

    def forgive(self, model: str) -> None:
        """The model may be loaded again, whatever failed before."""
        self._scheduler.forgive(model)

    def seed_service_times(self, answers: Mapping[str, Sequence[float]]) -> None:
        """See `Host`. Measured ones take precedence, later ones over earlier."""
        self._scheduler.seed_service_times(answers)

    async def pin(self, model: str, pinned: bool) -> bool:
        """Keep `model` loaded whatever else is requested and however long it is idle, or stop doing so.

        Returns whether the supervisor keeps the pin over a restart. Raises `GatewayError`.
        """
        if not isinstance(self._supervisor, SupportsPinning):
            raise ModelUnavailable(f"{self.name} pins models by their profiles only", model=model, final=True)
        try:
            return await self._supervisor.pin(model, pinned)
        except (UnknownProfile, SupervisorUnreachable) as error:
            gone = self._order_failed(error) == "host_gone"
            raise supervisor_unreachable(self.name) if gone else profile_removed(model, self.name) from None

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

    # Views

    @property
    def waiting(self) -> int:
        """The number of queued requests."""
        return sum(not lease.settled for lease in self._leases.values())

    @property
    def serving(self) -> int:
        """The number of requests that hold a lease."""
        return sum(lease.granted for lease in self._leases.values())

    def models(self) -> tuple[ModelView, ...]:
        """See `Host`."""
        return self._scheduler.view().models

    def outlooks(self) -> dict[str, ServiceOutlook]:
        """What every model's `distance` follows from."""
        return self._scheduler.outlooks(self._clock())

    def idle_times(self, now: float) -> dict[str, float]:
        """Seconds until each idle model is unloaded, by model; models that stay loaded are left out."""
        return {view.model: view.idle_until - now for view in self.models() if view.idle_until is not None}

    def is_serving(self, model: str) -> bool:
        """Whether a lease of `model` is held."""
        return any(lease.granted and lease.model == model for lease in self._leases.values())

    def distance(self, model: str) -> ServiceDistance:
        """How far a request for `model` is from being served here."""
        return self._scheduler.distance(model, self._clock())

    def estimate_s(self, lease: Lease) -> float:
        """See `Lease.estimate_s`."""
        return self._scheduler.estimate_s(lease.model, self._clock(), lease.id)

    def switched_s(self, lease: Lease) -> float:
        """See `Lease.switched_s`."""
        switch = self._switch_spans.get(lease.model)
        return 0.0 if switch is None else switch.overlap_s(lease.requested_at, self._clock())

    async def estimate_switch(self, model: str) -> SwitchEstimate | None:
        """See `Host`."""
        return self._scheduler.estimate_switch(model, self._clock())

    def queue(self) -> tuple[Waiting, ...]:
        """The queued requests in the order of service."""
        return self._progress.queue(self._clock())

    def place(self, lease: Lease) -> tuple[int | None, float, bool]:
        """The lease's position, its estimated wait in seconds, and whether that was measured."""
        return self._progress.place(lease, self._clock())

    def switches(self) -> list[SwitchMoved]:
        """The switches in progress."""
        return self._progress.switches()

    def progress(self, lease: Lease) -> Progress:
        """See `Lease.progress`."""
        return self._progress.progress(lease, self._clock(), self._addresses.models())

    # Reports of the supervisor

    async def _on_event(self, event: SupervisorEvent) -> None:
        if isinstance(event, Snapshot):
            host = await self._addresses.reconcile(
                event.host, fresh=not self.reachable, replaced=self._address_replaced
            )
            self.status = host
            self._on_status(host)
            self.set_reachable(True)
            self._progress.settle_switches([each.model for each in host.models if each.state == "ready"])
            now = self._clock()
            self._carry_out(self._scheduler.apply_snapshot(host, now), now)
            self._rearm()
            self.synced.set()
            self._publish(HostChanged(backend=self.name, reachable=True, host=host))
        elif isinstance(event, ModelChanged):
            await self._on_model_changed(event.status)
            self._publish(EngineChanged(backend=self.name, status=event.status))
        elif isinstance(event, DevicesRead):
            self._on_devices_read(event.devices)
        else:
            self._progress.switch_moved(event, self._clock())
            self._publish(SwitchChanged(backend=self.name, switch=event))

    def _on_devices_read(self, devices: tuple[DeviceStatus, ...]) -> None:
        if self.status is None:
            return
        self.status = msgspec.structs.replace(self.status, devices=devices)
        now = self._clock()
        self._carry_out(self._scheduler.apply_devices(devices, now), now)
        self._rearm()
        self._publish(DevicesChanged(backend=self.name, devices=devices))

    async def _on_model_changed(self, status: ModelStatus) -> None:
        if self.status is not None:
            self.status = self.status.with_model(status)
            self._on_status(self.status)
        now = self._clock()
        known = self._addresses.get(status.model)
        if status.state == "ready":
            if (known is None or known.generation < status.generation) and await self._addresses.locate(status.model):
                now = self._clock()
                parallel = self._addresses.of_ready(status.model).parallel
                self._carry_out(self._scheduler.loaded(None, status.model, now, parallel), now)
                self._rearm()
        elif status.state != "starting" and (known is None or known.generation <= status.generation):
            self._addresses.remove(status.model)
            if (
                status.model not in self._stops
            ):  # stops that this orchestrator requested are reported when they are complete
                self._carry_out(self._scheduler.process_ended(status.model, now), now)

    def _address_replaced(self, model: str) -> None:
        """The known address is no longer valid: the model has another process, or none. The scheduler must know at
        once: a request that comes while others are still being located must not be sent there."""
        now = self._clock()
        self._carry_out(self._scheduler.process_ended(model, now), now)

    # Decisions of the scheduler

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
                lease.refuse(refusal_error(decision, self.name, self.status), decision)
            elif self._tasks is None:
                raise RuntimeError("the orchestrator is not running")
            elif isinstance(decision, StartSwitch):
                self._tasks.start_soon(self._switch, decision)
            else:
                self._stops.setdefault(decision.model, anyio.Event())
                self._tasks.start_soon(self._unload, decision)
        if queue_moved:
            self._publish_queue(now)

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
        await assignment.prepare()
        if self.holds(lease):
            lease.record_wait(self._clock())
            lease.grant(address)

    def _publish_queue(self, now: float) -> None:
        """Publish the queue: at once while it is short, rarely while it is long, since that takes time proportional to
        its length."""
        if not self._progress.crowded or self._tasks is None:
            self._publish_queue_now()
        elif not self._queue_event_due:
            self._queue_event_due = True
            self._tasks.start_soon(self._publish_queue_soon)

    async def _publish_queue_soon(self) -> None:
        await anyio.sleep(POSITIONS_EVERY_S)
        self._queue_event_due = False
        self._publish_queue_now()

    def _publish_queue_now(self) -> None:
        self._publish(QueueChanged(backend=self.name, waiting=self.queue(), serving=self.serving))

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
