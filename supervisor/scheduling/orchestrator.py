"""Carries out the decisions of one host's scheduler: requests to its supervisor, leases for waiting requests."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence

import anyio
import msgspec

from hostler.adapters.errors import GatewayError, ModelUnavailable
from hostler.supervisor.contract import (
    DevicesRead,
    DeviceStatus,
    EngineAddress,
    HostStatus,
    ModelChanged,
    ModelLease,
    ModelStatus,
    PromptIdentity,
    Snapshot,
    Supervisor,
    SupervisorEvent,
    SupervisorUnreachable,
    SupportsDraining,
    SupportsPinning,
    UnknownProfile,
)
from hostler.supervisor.scheduling.abandoned import AbandonedLeases
from hostler.supervisor.scheduling.decision_executor import DecisionExecutor
from hostler.supervisor.scheduling.errors import (
    check_not_leased,
    profile_removed,
    supervisor_unreachable,
)
from hostler.supervisor.scheduling.events import (
    DevicesChanged,
    EngineChanged,
    HostChanged,
    HostEvent,
    SwitchChanged,
)
from hostler.supervisor.scheduling.first_answers import FirstAnswers
from hostler.supervisor.scheduling.hanging_engines import HangingEngines
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.model_leasing import ModelLeasing
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.types import (
    Refuse,
    SchedulerSettings,
)

logger = logging.getLogger(__name__)

#: Pause before a subscription that ended is renewed, in seconds.
_RESUBSCRIBE_S = 0.25


class Orchestrator(DecisionExecutor):
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
        super().__init__(name, supervisor, settings=settings, publish=publish, on_stopping=on_stopping, clock=clock)
        self._on_status = on_status
        self._ids = itertools.count(1)
        self._abandoned = AbandonedLeases(
            supervisor.active_requests, self._release_abandoned, self._give_up, self._leases.values, clock=clock
        )
        self._hanging = HangingEngines(name, supervisor, self._addresses.get)
        self._model_leasing = ModelLeasing(self, supervisor, apply=self._apply_leases, order_error=self._order_error)
        self._first_answers = FirstAnswers(name, supervisor)
        self._stopped_with: Callable[[], GatewayError] | None = None

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
        background: bool = False,
    ) -> Lease:
        """See `Host.lease`."""
        now = self._clock()
        lease = Lease(
            self, lease_id=next(self._ids), model=model, requested_at=now - waited_s, client=client, request_id=request_id,
            keep_alive_s=keep_alive_s, prompt=prompt, background=background,
        )  # fmt: skip
        self._leases[lease.id] = lease
        ticket = Ticket(
            id=lease.id, model=model, at=lease.requested_at, client=client, priority=priority,
            client_port=client_port, background=background,
        )  # fmt: skip
        self._carry_out(self._scheduler.request(ticket, now), now)
        if lease.assignment is not None:
            return lease
        if not lease.settled and self._stopped_with is not None:
            lease.refuse(self._stopped_with(), self._stopping(lease))
            self._carry_out(self._scheduler.cancel(lease.id, now), now)
        if not lease.settled:
            lease.queued = True
            self._queue_events.publish(self._tasks)
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
            self._first_answers.report(lease, self._tasks)
            self._hanging.answered(lease.model)
            if lease.usage is not None:
                self._scheduler.answered(lease.id, lease.usage, now)
            if lease.prompt is not None:
                self._conversations.add(lease.model, lease.prompt)
        elif lease.timed_out:
            self._hanging.timed_out(lease, self._tasks)
        if lease.settled:
            decisions = self._scheduler.release(lease.id, now, lease.keep_alive_s)
        else:
            lease.record_wait(now)
            decisions = self._scheduler.cancel(lease.id, now)
        self._carry_out(decisions, now)
        if not lease.settled:
            self._queue_events.publish(self._tasks)
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
            self._queue_events.publish(self._tasks)
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
        self._queue_events.publish(self._tasks)

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

    def holds_engine(self, model: str, generation: int) -> EngineAddress | None:
        """The address of the model's engine, if it is of this generation."""
        address = self._addresses.get(model)
        return address if address is not None and address.generation == generation else None

    @staticmethod
    def _stopping(lease: Lease) -> Refuse:
        return Refuse(ticket=lease.id, model=lease.model, reason="stopping", retry_after_s=0.0)

    def engine_lost(self, address: EngineAddress) -> None:
        """Nothing listens at this address any more: the next request starts a new process."""
        if self._addresses.mark_dead(address):
            now = self._clock()
            self._carry_out(self._scheduler.process_ended(address.model, now), now)

    # Operations

    async def unload(self, model: str, *, force: bool = False) -> None:
        """Refuse the model's queue and stop the model. Raises `ModelUnavailable` if it is leased.

        Its running answers end first, and this returns at once if there are any. With `force` they are cut off, and
        this returns when the process is gone.
        """
        check_not_leased(model, self.model_leases)
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
            raise self._order_error(error, model) from None

    def _order_error(self, error: UnknownProfile | SupervisorUnreachable, model: str) -> GatewayError:
        if self._order_failed(error) == "host_gone":
            return supervisor_unreachable(self.name)
        return profile_removed(model, self.name)

    async def drain(self, draining: bool) -> bool:
        """See `Host`."""
        if not isinstance(self._supervisor, SupportsDraining):
            raise ModelUnavailable(f"{self.name} cannot be drained", final=True)
        try:
            return await self._supervisor.drain(draining)
        except SupervisorUnreachable as error:
            raise self._order_error(error, "") from None

    async def lease_model(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        """See `Host`."""
        return await self._model_leasing.add(model, holder=holder, seconds=seconds)

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        """See `Host`."""
        return await self._model_leasing.end(lease_id)

    def _apply_leases(self, leases: tuple[ModelLease, ...]) -> None:
        """Apply leases at once, without waiting for the supervisor's snapshot."""
        if self.status is not None:
            self.status = msgspec.structs.replace(self.status, leases=leases)
        now = self._clock()
        self._carry_out(self._scheduler.apply_leases(leases, now), now)
        self._rearm()

    # Reports of the supervisor

    async def _on_event(self, event: SupervisorEvent) -> None:
        if isinstance(event, Snapshot):
            host = await self._addresses.reconcile(
                event.host, fresh=not self.reachable, replaced=self._address_replaced
            )
            self.status = host
            self._on_status(host)
            self.set_reachable(True)
            if host.draining:
                self._publish(HostChanged(backend=self.name, reachable=True, host=host))  # before it refuses what waits
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
            # Stops that this orchestrator requested are reported when they are complete.
            if status.model not in self._stops:
                failed = status.state == "failed"
                self._carry_out(self._scheduler.process_ended(status.model, now, failed=failed), now)

    def _address_replaced(self, model: str) -> None:
        """The known address is no longer valid: the model has another process, or none. The scheduler must know at
        once: a request that comes while others are still being located must not be sent there."""
        now = self._clock()
        self._carry_out(self._scheduler.process_ended(model, now), now)
