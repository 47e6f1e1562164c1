"""The progress shown to queued requests: position, estimate, and the switch in progress."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import msgspec

from hostler.adapters.canonical import Progress
from hostler.supervisor.contract import SwitchMoved
from hostler.supervisor.scheduling.events import Waiting
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.scheduler import Scheduler

#: With more leases than this, positions are computed at most every `POSITIONS_EVERY_S` seconds instead of at every
#: step.
_SHORT = 50
POSITIONS_EVERY_S = 0.25


#: The last phases of a switch, and those that are one load for whoever waits.
ENDED = ("ready", "failed")
LOADING = ("starting", "loading", "restoring")


class KnownSwitch(msgspec.Struct, frozen=True):
    """A switch as last reported, and when."""

    moved: SwitchMoved
    at: float

    @property
    def active(self) -> bool:
        return self.moved.phase not in ENDED


class SwitchSpan(msgspec.Struct):
    """When a switch began and ended; infinite while it is under way."""

    began: float
    ended: float = math.inf

    def overlap_s(self, since: float, until: float) -> float:
        """How long it took between these times, in seconds."""
        return max(0.0, min(self.ended, until) - max(self.began, since))


def shown_progress(
    model: str, switch: KnownSwitch | None, position: int | None, eta_s: float | None, loaded: Collection[str],
    waited_s: float, now: float,
) -> Progress:  # fmt: skip
    """The progress of a request for `model`: the switch to it, else its place behind the `loaded` models. `eta_s` is the
    estimate of the request's place."""
    if switch is not None and switch.active:
        moved, ago_s = switch.moved, now - switch.at
        if eta_s is None and moved.eta_s is not None and position in (None, 1):
            eta_s = max(0.0, moved.eta_s - ago_s)
        return Progress(
            phase=moved.phase,
            model=model,
            from_model=moved.from_models[0] if moved.from_models else None,
            position=position,
            percent=moved.percent,
            eta_s=None if moved.overdue else eta_s,
            elapsed_s=_phase_elapsed_s(moved) + ago_s,
            overdue=moved.overdue,
            waited_s=waited_s,
        )
    others = [other for other in loaded if other != model]
    return Progress(
        phase="queued",
        model=model,
        from_model=others[0] if len(others) == 1 else None,
        position=position,
        eta_s=eta_s,
        elapsed_s=waited_s,
        waited_s=waited_s,
    )


def _phase_elapsed_s(moved: SwitchMoved) -> float:
    """How long the present phase had taken; a load is one, whatever its steps are."""
    ended = sum(
        seconds for phase, seconds in moved.phase_seconds.items() if not (phase in LOADING and moved.phase in LOADING)
    )
    return max(0.0, moved.elapsed_s - ended)


class QueueProgress:
    """The progress of one host's leases. Reads the scheduler and the leases."""

    def __init__(self, scheduler: Scheduler, leases: Mapping[int, Lease]) -> None:
        self._scheduler = scheduler
        self._leases = leases
        self._switches: dict[str, KnownSwitch] = {}
        self._positions: dict[int, tuple[int, float]] = {}
        self._measured: dict[str, bool] = {}
        self._computed_at = -math.inf

    @property
    def crowded(self) -> bool:
        """Whether there are so many leases that positions are computed every `POSITIONS_EVERY_S` only."""
        return len(self._leases) > _SHORT

    def switch_moved(self, switch: SwitchMoved, now: float) -> None:
        """A switch has advanced: notify the leases that wait for its model, once for each phase."""
        known = self._switches.get(switch.model)
        before = None if known is None else known.moved
        self._switches[switch.model] = KnownSwitch(switch, now)
        if switch.phase == "fetching" or switch.phase in LOADING:
            self._scheduler.load_moved(switch.model, switch.eta_s, now, overdue=switch.overdue)
        if before is None or (before.id, before.phase) != (switch.id, switch.phase):
            for lease in self._leases.values():
                if lease.model == switch.model and not lease.settled:
                    lease.notify()

    def settle_switches(self, ready: Collection[str]) -> None:
        """These models are ready: switches to them have ended, even if the events were missed."""
        for model in ready:
            self._switches.pop(model, None)

    def clear(self) -> None:
        """Forget the switches: the supervisor reports no more of them."""
        self._switches.clear()

    def queue(self, now: float) -> tuple[Waiting, ...]:
        """The queued requests in the order of service."""
        self._measured.clear()
        return tuple(
            Waiting(
                id=lease.request_id,
                model=lease.model,
                client=lease.client,
                position=position,
                waited_s=round(now - lease.requested_at, 3),
                eta_s=round(eta_s, 3) if self._is_measured(lease, now) else None,
            )
            for position, ticket, eta_s in self._in_order(now)
            if (lease := self._leases.get(ticket)) is not None
        )

    def progress(self, lease: Lease, now: float, loaded: Collection[str]) -> Progress:
        """What a lease waits for: the switch to its model, or its place in the queue behind the `loaded` models."""
        switch = self._switches.get(lease.model)
        waited_s = now - lease.requested_at
        position, estimate_s = self._position(lease, now)
        # A guess is good enough for Retry-After, but only a measured time is shown counting down.
        eta_s = estimate_s if self._scheduler.is_measured(lease.model, now, lease.id) else None
        return shown_progress(lease.model, switch, position, eta_s, loaded, waited_s, now)

    def place(self, lease: Lease, now: float) -> tuple[int | None, float, bool]:
        """The lease's position, its estimated wait, and whether that was measured."""
        position, estimate_s = self._position(lease, now)
        return position, estimate_s, self._is_measured(lease, now)

    def _is_measured(self, lease: Lease, now: float) -> bool:
        """Whether the lease's estimate was measured; in a long queue, whether that of its model's last one was."""
        if not self.crowded:
            return self._scheduler.is_measured(lease.model, now, lease.id)
        measured = self._measured.get(lease.model)
        if measured is None:
            measured = self._measured[lease.model] = self._scheduler.is_measured(lease.model, now)
        return measured

    def switches(self) -> list[SwitchMoved]:
        """The switches in progress."""
        return [switch.moved for switch in self._switches.values() if switch.active]

    def _in_order(self, now: float) -> Iterator[tuple[int, int, float]]:
        """Position, ticket and estimated wait of every queued ticket, in the order of service."""
        for position, (ticket, eta_s) in enumerate(self._scheduler.in_order(now), start=1):
            yield position, ticket.id, eta_s

    def _position(self, lease: Lease, now: float) -> tuple[int | None, float]:
        """The lease's position and estimated wait. In a long queue these may be `POSITIONS_EVERY_S` old: computing them
        for every lease at every step would be quadratic."""
        if not self.crowded:
            for position, ticket, eta_s in self._in_order(now):
                if ticket == lease.id:
                    return position, eta_s
            return None, self._scheduler.estimate_s(lease.model, now, lease.id)
        if now >= self._computed_at + POSITIONS_EVERY_S:
            self._computed_at = now
            self._measured.clear()
            self._positions = {ticket: (position, eta_s) for position, ticket, eta_s in self._in_order(now)}
        known = self._positions.get(lease.id)
        if known is None:  # it came since then, or is being served
            if not self._scheduler.is_waiting(lease.id):
                return None, self._scheduler.estimate_s(lease.model, now, lease.id)
            return len(self._positions) + 1, self._scheduler.estimate_s(lease.model, now)
        return known[0], max(0.0, known[1] - (now - self._computed_at))
