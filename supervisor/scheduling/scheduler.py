"""Decides, for one host, which request may use which model when, and which models are loaded and stopped for that.

No task, no clock, no socket: every method takes the time and returns the decisions that follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from hostler.adapters.canonical import Usage
from hostler.supervisor.contract import DeviceStatus, Failure, HostStatus, ModelLease
from hostler.supervisor.scheduling.eviction import (
    capacity_of,
    models_to_yield,
    with_devices,
)
from hostler.supervisor.scheduling.model import ScheduledModel
from hostler.supervisor.scheduling.plans import SchedulerPlans
from hostler.supervisor.scheduling.queue import ModelQueue, Ticket
from hostler.supervisor.scheduling.types import (
    Decision,
    Revoke,
    SchedulerSettings,
)


class Scheduler(SchedulerPlans):
    """Grants, queues and switches for one host.

    Guarantees: a ticket gets exactly one `Grant` or `Refuse`, unless it is cancelled first; no `StartSwitch` evicts a
    model in use; switches that need the same memory never overlap; the late result of an abandoned switch never reaches
    a ticket that came afterwards. Later tickets for a loaded model overtake a ticket for `patience_s` at most, and then
    only those that were queued when that model became ready.

    A host that is drained refuses all tickets, and stops its models, pinned ones included, as soon as their leases have
    ended; only leased models stay until their leases expire.

    The host is unknown before the first `apply_snapshot`; until then, and after `supervisor_lost`, only models that are
    ready are granted.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings)
        self._earlier_answers: Mapping[str, Sequence[float]] = {}

    def apply_settings(self, settings: SchedulerSettings, now: float) -> list[Decision]:
        """Apply changed limits; queued tickets stay queued."""
        self._settings = settings
        self._admission.limit = settings.max_waiting
        return self._settle(now)

    # Tickets

    def request(self, ticket: Ticket, now: float) -> list[Decision]:
        """Grant `ticket.model`, refuse it, or queue the ticket. Raises `ValueError` for a ticket id in use."""
        if ticket.id in self._leases or ticket.id in self._waiting or ticket.id in self._background:
            raise ValueError(f"ticket {ticket.id} is in use")
        model = self._models.get(ticket.model)
        if model is None or not model.known:
            return [self._refuse(ticket, "unknown_model" if self._connected else "host_gone", now)]
        if self._draining:
            return [self._refuse(ticket, "stopping", now)]
        if model.priority:
            ticket = msgspec.structs.replace(ticket, priority=ticket.priority + model.priority)
        if ticket.background:
            return self._request_background(ticket, model, now)
        self._background.used_at = now
        if model.phase == "ready":
            # The hot path: a free slot and nothing queued for the model.
            if model.running < model.parallel and model.barrier is None and not model.queue and not model.unloading:
                if self._admission:
                    self._admission.leave(ticket, now)
                if model.admission:
                    model.admission.leave(ticket, now)
                if self._background.running:
                    return [*self._preempt(model), self._grant(ticket, model, now)]
                return [self._grant(ticket, model, now)]
        elif not self._connected:
            return [self._refuse(ticket, "host_gone", now)]
        elif now < model.failed_until:
            return [self._refuse(ticket, "load_failed", now)]
        if model.admission is not None and not model.admission.admits(ticket, self._queue, len(model.queue), now):
            return [self._refuse(ticket, "model_queue_full", now)]
        if not self._admission.admits(ticket, self._queue, len(self._waiting), now):
            return [self._refuse(ticket, "queue_full", now)]
        preempted = self._preempt(model)
        model.queue.add(self._queue.join(ticket))
        self._waiting[ticket.id] = model
        return [*preempted, *self._settle(now)]

    def _request_background(self, ticket: Ticket, model: ScheduledModel, now: float) -> list[Decision]:
        """Let background work wait until the host has nothing else to do."""
        if not self._connected:
            return [self._refuse(ticket, "host_gone", now)]
        if now < model.failed_until:
            return [self._refuse(ticket, "load_failed", now)]
        self._background.add(ticket)
        return self._settle(now)

    def _preempt(self, wanted: ScheduledModel) -> list[Decision]:
        """A request for `wanted` came: cut background work off, and give up a load for it that would be in the way."""
        decisions: list[Decision] = [Revoke(ticket=ticket_id) for ticket_id in sorted(self._background.running)]
        loading = self._background.loading
        if loading is not None and loading is not wanted and loading.phase == "loading" and not loading.queue:
            decisions.append(self._stop(loading))
        self._background.loading = None
        return decisions

    def release(self, ticket_id: int, now: float, keep_alive_s: float | None = None) -> list[Decision]:
        """End a lease. `keep_alive_s` replaces the model's idle time (0: stop it, infinite: keep it)."""
        lease = self._leases.pop(ticket_id, None)
        if lease is None:
            return []
        model = lease.model
        if not self._background.released(ticket_id, now):
            model.record_service(now - lease.since)
        if lease.generation != model.generation:
            return self._settle(now) if self._background else []
        model.running -= 1
        if not model.running:
            model.mark_idle(now, keep_alive_s)
        elif not (model.queue or self._background):
            return []
        if not (self._waiting or self._background or model.unloading or self._draining) and (
            model.idle_until is None or model.idle_until > now
        ):
            return []
        return self._settle(now)

    def answered(self, ticket_id: int, usage: Usage, now: float) -> None:
        """A lease, which is still held, has brought an answer with this usage."""
        if (lease := self._leases.get(ticket_id)) is not None:
            lease.model.speed.record(usage, now - lease.since)

    def cancel(self, ticket_id: int, now: float) -> list[Decision]:
        """Drop the ticket, whether it is queued, was granted a moment ago, or is gone already."""
        if ticket_id in self._background:
            self._background.remove(ticket_id)
            return []
        if ticket_id in self._waiting:
            self._queue.leave(self._dequeue(ticket_id))
            return self._settle(now)
        return self.release(ticket_id, now)

    # Reports of the host

    def loaded(self, switch_id: int | None, model: str, now: float, parallel: int = 0) -> list[Decision]:
        """`model` is ready. `switch_id` is `None` if the host loaded it on its own; `parallel` 0: as the profile
        says."""
        switch = self._finish(switch_id)
        state = self._models.get(model)
        if state is None or (switch_id is None and state.phase == "stopping") or state.switch != switch_id:
            return self._settle(now) if switch else []
        if state.phase == "ready":
            return []
        if switch is not None:
            state.record_load(now - state.since)
        state.become_ready(now, parallel)
        return self._settle(now)

    def prepare_failed(self, model: str, now: float, failure: Failure) -> list[Decision]:
        """What the next load needs cannot be had: its queue is refused, and no other model has to stop for it."""
        state = self._models.get(model)
        if state is None or state.phase != "cold" or self._next is None or self._next.model != model:
            return []
        if failure.retry_after_s:
            state.failure, state.failed_until = failure, now + failure.retry_after_s
        return [*self._refuse_queue(state, "load_failed", now, failure), *self._settle(now)]

    def load_failed(self, switch_id: int, model: str, now: float, failure: Failure | None = None) -> list[Decision]:
        """The switch failed: the model's queue is refused, and the previous model is loaded again.

        Its victims are assumed to be stopped; ordering one again is harmless if that is wrong.
        """
        switch = self._finish(switch_id)
        state = self._models.get(model)
        if state is None or state.switch != switch_id:
            return self._settle(now) if switch else []
        state.become_cold()
        state.lease_void = True
        if failure is not None and failure.retry_after_s:
            state.failure, state.failed_until = failure, now + failure.retry_after_s
        decisions: list[Decision] = [*self._refuse_queue(state, "load_failed", now, failure)]
        decisions += self._refuse_background(state.name, "load_failed", now, failure)
        decisions += self._settle(now)
        quiet = not self._switches and all(other.phase == "cold" or other.pinned for other in self._models.values())
        if switch is not None and switch.victims and quiet and self._connected:
            previous = max(switch.victims, key=lambda victim: victim.used_at)
            if previous.known and now >= previous.failed_until:
                decisions.append(self._start_switch(previous, [], now))
        return decisions

    def process_ended(self, model: str, now: float, *, failed: bool = False) -> list[Decision]:
        """The model's process ended: it crashed, or was stopped as ordered. Leases on it end by `release` as always.
        `failed`: the supervisor does not start it again by itself."""
        state = self._models.get(model)
        if state is None or state.phase == "cold" or state.switch is not None:
            return []  # a load under way reports by `loaded` or `load_failed`
        state.become_cold()
        state.lease_void = state.lease_void or failed
        return self._settle(now)

    def unloaded(self, model: str, now: float) -> list[Decision]:
        """An `Unload` was carried out, or failed. Without effect if a new process is there already."""
        state = self._models.get(model)
        return self.process_ended(model, now) if state is not None and state.phase == "stopping" else []

    def unload(self, model: str, now: float, *, force: bool = False) -> list[Decision]:
        """Refuse the model's queue, and stop the model when its running answers have ended, or at once with `force`.
        Later requests wait for a new process."""
        state = self._models.get(model)
        if state is None:
            return []
        state.displaced = False
        decisions: list[Decision] = [*self._refuse_queue(state, "unloaded", now, None)]
        decisions += self._refuse_background(state.name, "unloaded", now, None)
        self._background.used_at = now
        if state.phase == "loading":
            decisions.append(self._stop(state))  # nothing waits for the result of its switch any more
        elif state.phase == "ready":
            state.unloading = True
            if force:
                decisions.append(self._stop(state))
        return decisions + self._settle(now)

    def load_moved(self, model: str, eta_s: float | None, now: float, *, overdue: bool = False) -> None:
        """The load under way will take `eta_s` by the supervisor's own estimate, or takes longer than usual."""
        state = self._models.get(model)
        if state is not None and state.phase == "loading":
            state.ready_at, state.overdue = None if eta_s is None else now + eta_s, overdue

    def give_up(self, model: str, now: float) -> list[Decision]:
        """Stop the model's process, whatever it works on. What is queued for it waits for the next one."""
        state = self._models.get(model)
        if state is None or state.phase != "ready":
            return []
        return [self._stop(state), *self._settle(now)]

    def forgive(self, model: str) -> None:
        """The model may be loaded again, whatever failed before."""
        if (state := self._models.get(model)) is not None:
            state.failure, state.failed_until = None, -math.inf

    def apply_snapshot(self, status: HostStatus, now: float) -> list[Decision]:
        """Apply the supervisor's snapshot: its profiles, its capacity, and every change that was missed."""
        self._connected = True
        self._capacity = capacity_of(status)
        self._return_s = status.return_to_default_s
        profiles = {profile.name: profile for profile in status.profiles}
        statuses = {entry.model: entry for entry in status.models}
        decisions: list[Decision] = []
        for profile in profiles.values():
            if profile.name not in self._models:
                self._models[profile.name] = ScheduledModel(profile.name, ModelQueue())
                self._seed(self._models[profile.name])
            self._models[profile.name].apply_profile(profile, now)
        for state in list(self._models.values()):
            state.known = state.name in profiles
            if not state.known:
                decisions += self._refuse_queue(state, "unknown_model", now, None)
            state.reconcile(statuses.get(state.name), now)
            if not state.known and state.phase == "cold":
                del self._models[state.name]
        self._set_leases(status.leases, now)
        self._draining = status.draining
        if self._draining:
            decisions += self._empty(now)
        return decisions + self._settle(now)

    def _empty(self, now: float) -> list[Decision]:
        """The host is drained: have all tickets go elsewhere, and give up loads. `_settle` stops what is idle."""
        decisions: list[Decision] = [*self._refuse_background(None, "stopping", now, None)]
        for state in self._models.values():
            decisions += self._refuse_queue(state, "stopping", now, None)
            if state.phase == "loading" and state.model_lease is None:
                decisions.append(self._stop(state))
        return decisions

    def apply_leases(self, leases: Sequence[ModelLease], now: float) -> list[Decision]:
        """Apply the leases of models, as they are from now on."""
        self._set_leases(leases, now)
        return self._settle(now)

    def _set_leases(self, leases: Sequence[ModelLease], now: float) -> None:
        latest = {lease.model: lease for lease in sorted(leases, key=lambda lease: lease.expires_at)}
        for state in self._models.values():
            state.apply_lease(latest.get(state.name), now)

    def apply_devices(self, devices: Sequence[DeviceStatus], now: float) -> list[Decision]:
        """Apply readings of the host's GPUs. One idle model at a time leaves for other programs: the next reading shows
        whether they need more."""
        self._capacity = with_devices(self._capacity, devices)
        decisions: list[Decision] = []
        if self._capacity.yielding and not any(
            state.phase in ("loading", "stopping") for state in self._models.values()
        ):
            leaving = models_to_yield((state.footprint() for state in self._loaded()), self._capacity)
            if leaving is not None:
                decisions.append(self._stop(self._models[leaving]))
        return decisions + self._settle(now)

    def seed_service_times(self, answers: Mapping[str, Sequence[float]]) -> None:
        """Durations of each model's answers before this process started, oldest first. Measured ones take
        precedence."""
        self._earlier_answers = {**self._earlier_answers, **answers}
        for state in self._models.values():
            self._seed(state)

    def supervisor_lost(self, now: float) -> list[Decision]:
        """The supervisor does not answer: refuse every queue. Models that were ready may still answer."""
        self._connected = False
        decisions: list[Decision] = []
        for state in self._models.values():
            decisions += self._refuse_queue(state, "host_gone", now, None)
        decisions += self._refuse_background(None, "host_gone", now, None)
        return decisions + self._settle(now)

    # Time

    def tick(self, now: float) -> list[Decision]:
        """Time has passed. Harmless if called too early or too often."""
        decisions: list[Decision] = []
        for state in self._models.values():
            while state.queue and now >= self._waits_until(state, now):
                entry = self._dequeue(state.queue.oldest().id)
                self._queue.leave(entry)
                decisions.append(self._refuse(entry.ticket, "wait_limit", now))
        return decisions + self._settle(now)

    def next_deadline(self) -> float | None:
        """When `tick` is due. A grant never makes it earlier, so a timer need not be set again after one."""
        due = min(self._plan_due, self._background.due)
        if self._return_s is not None and (returning := self._return_due()) is not None:
            due = min(due, returning[0])
        for state in self._models.values():
            if state.queue:
                # A load ends by a report, not by time.
                due = due if state.phase == "loading" else min(due, self._waits_until(state, state.since))
            elif state.idle_until is not None and state.phase == "ready":
                due = min(due, state.idle_until)
        return None if due == math.inf else due

    def _seed(self, state: ScheduledModel) -> None:
        if state.measured_service_s is None:
            for seconds in self._earlier_answers.get(state.name, ()):
                state.record_service(seconds)
