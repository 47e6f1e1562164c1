"""The progress shown to queued requests: position, estimate, and the switch in progress."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from hostler.adapters.canonical import Progress
from hostler.supervisor.contract import SwitchMoved
from hostler.supervisor.scheduling.events import Waiting
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.scheduler import Scheduler

#: With more leases than this, positions are computed at most every `POSITIONS_EVERY_S` seconds instead of at every
#: step.
_SHORT = 50
POSITIONS_EVERY_S = 0.25


#: The last phases of a switch.
ENDED = ("ready", "failed")


def shown_progress(
    model: str, switch: SwitchMoved | None, position: int | None, eta_s: float | None, loaded: Collection[str],
    waited_s: float,
) -> Progress:  # fmt: skip
    """The progress of a request for `model`: the switch to it, else its place behind the `loaded` models."""
    if switch is not None and switch.phase not in ENDED:
        return Progress(
            phase=switch.phase,
            model=model,
            from_model=switch.from_models[0] if switch.from_models else None,
            position=position,
            percent=switch.percent,
            eta_s=eta_s if switch.eta_s is None else switch.eta_s,
            waited_s=waited_s,
        )
    others = [other for other in loaded if other != model]
    return Progress(
        phase="queued",
        model=model,
        from_model=others[0] if len(others) == 1 else None,
        position=position,
        eta_s=eta_s,
        waited_s=waited_s,
    )


class QueueProgress:
    """The progress of one host's leases. Reads the scheduler and the leases."""

    def __init__(self, scheduler: Scheduler, leases: Mapping[int, Lease]) -> None:
        self._scheduler = scheduler
        self._leases = leases
        self._switches: dict[str, SwitchMoved] = {}
        self._positions: dict[int, tuple[int, float]] = {}
        self._measured: dict[str, bool] = {}
        self._computed_at = -math.inf

    @property
    def crowded(self) -> bool:
        """Whether there are so many leases that positions are computed every `POSITIONS_EVERY_S` only."""
        return len(self._leases) > _SHORT

    def switch_moved(self, switch: SwitchMoved) -> None:
        """A switch has advanced: notify the leases that wait for its model, once for each phase."""
        before = self._switches.get(switch.model)
        self._switches[switch.model] = switch
        if before is None or (before.id, before.phase) != (switch.id, switch.phase):
            for lease in self._leases.values():
                if lease.model == switch.model and not lease.settled:
                    lease.notify()

    def clear(self) -> None:
        """Forget the switches: the supervisor reports no more of them."""
        self._switches.clear()

    def queue(self, now: float) -> tuple[Waiting, ...]:
        """The queued requests in the order of service."""
        return tuple(
            Waiting(
                id=lease.request_id,
                model=lease.model,
                client=lease.client,
                position=position,
                waited_s=round(now - lease.requested_at, 3),
                eta_s=round(eta_s, 3),
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
        eta_s = estimate_s if self._scheduler.is_measured(lease.model, lease.id) else None
        return shown_progress(lease.model, switch, position, eta_s, loaded, waited_s)

    def place(self, lease: Lease, now: float) -> tuple[int | None, float, bool]:
        """The lease's position, its estimated wait, and whether that was measured."""
        position, estimate_s = self._position(lease, now)
        if not self.crowded:
            return position, estimate_s, self._scheduler.is_measured(lease.model, lease.id)
        measured = self._measured.get(lease.model)
        if measured is None:
            measured = self._measured[lease.model] = self._scheduler.is_measured(lease.model)
        return position, estimate_s, measured

    def switches(self) -> list[SwitchMoved]:
        """The switches in progress."""
        return [switch for switch in self._switches.values() if switch.phase not in ENDED]

    def _in_order(self, now: float) -> Iterator[tuple[int, int, float]]:
        """Position, ticket and estimated wait of every queued ticket, in the order of service."""
        ahead: dict[str, int] = {}
        for position, ticket in enumerate(self._scheduler.view().waiting, start=1):
            before = ahead.get(ticket.model, 0)
            ahead[ticket.model] = before + 1
            yield position, ticket.id, self._scheduler.estimate_behind_s(ticket.model, before, now)

    def _position(self, lease: Lease, now: float) -> tuple[int | None, float]:
        """The lease's position and estimated wait. In a long queue these may be `POSITIONS_EVERY_S` old: computing them
        for every lease at every step would be quadratic."""
        if not self.crowded:
            return self._scheduler.position(lease.id), self._scheduler.estimate_s(lease.model, now, lease.id)
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
