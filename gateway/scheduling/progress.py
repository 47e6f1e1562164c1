"""What those who wait at one host have before them: their place in line, how long it will take, the switch under way.

Reads the scheduler and the turns; decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from hostler.adapters.types import Progress
from hostler.gateway.events import Waiting
from hostler.gateway.scheduling.lease import Lease
from hostler.gateway.scheduling.scheduler import Scheduler
from hostler.supervisor.contract import SwitchMoved

#: With more requests than this, who waits is looked through at most so often, in seconds, and not at every step.
_FEW = 50
PLACES_S = 0.25


class QueueProgress:
    """The line of one host, as it is told to those who stand in it and to whoever watches."""

    def __init__(self, scheduler: Scheduler, turns: Mapping[int, Lease]) -> None:
        self._scheduler = scheduler
        self._turns = turns
        self._moved: dict[str, SwitchMoved] = {}
        self._places: dict[int, tuple[int, float]] = {}
        self._placed_at = -math.inf

    @property
    def crowded(self) -> bool:
        """Whether so many are served or wait that they are not looked through at every step, but every `PLACES_S`."""
        return len(self._turns) > _FEW

    def moved(self, switch: SwitchMoved) -> None:
        """The supervisor says how far a switch is: whoever waits for its model hears of every phase."""
        before = self._moved.get(switch.model)
        self._moved[switch.model] = switch
        if before is None or (before.id, before.phase) != (switch.id, switch.phase):
            for turn in self._turns.values():
                if turn.model == switch.model and not turn.settled:
                    turn.tell()

    def forget(self) -> None:
        """Nobody says any more how far switches are."""
        self._moved.clear()

    def queue(self, now: float) -> tuple[Waiting, ...]:
        """Who waits, in the order of service."""
        return tuple(
            Waiting(
                id=turn.request_id,
                model=turn.model,
                client=turn.client,
                position=position,
                waited_s=round(now - turn.asked_at, 3),
                eta_s=round(eta_s, 3),
            )
            for position, ticket, eta_s in self._in_line(now)
            if (turn := self._turns.get(ticket)) is not None
        )

    def progress(self, turn: Lease, now: float, loaded: Collection[str]) -> Progress:
        """What a turn waits for: the switch to its model, or its place in line behind those that are `loaded`."""
        moved = self._moved.get(turn.model)
        waited_s = now - turn.asked_at
        position, estimate_s = self._place(turn, now)
        # A guess helps to say when to come back, but a time that nobody measured is not shown running down.
        known = self._scheduler.knows_time(turn.model, turn.id)
        eta_s = estimate_s if known else None
        if moved is not None and moved.phase not in ("ready", "failed"):
            return Progress(
                phase=moved.phase,
                model=turn.model,
                from_model=moved.from_models[0] if moved.from_models else None,
                position=position,
                percent=moved.percent,
                eta_s=eta_s if moved.eta_s is None else moved.eta_s,
                waited_s=waited_s,
            )
        others = [model for model in loaded if model != turn.model]
        return Progress(
            phase="queued",
            model=turn.model,
            from_model=others[0] if len(others) == 1 else None,
            position=position,
            eta_s=eta_s,
            waited_s=waited_s,
        )

    def _in_line(self, now: float) -> Iterator[tuple[int, int, float]]:
        """Everybody in line in the order of service: place, ticket and the seconds until it is served."""
        ahead: dict[str, int] = {}
        for position, ticket in enumerate(self._scheduler.snapshot().waiting, start=1):
            before = ahead.get(ticket.model, 0)
            ahead[ticket.model] = before + 1
            yield position, ticket.id, self._scheduler.estimate_behind(ticket.model, before, now)

    def _place(self, turn: Lease, now: float) -> tuple[int | None, float]:
        """A turn's place in line, and the seconds until it is served. In a long line these may be a little old: looking
        through all of it for everybody in it would take longer than telling them may."""
        if not self.crowded:
            return self._scheduler.position(turn.id), self._scheduler.estimate(turn.model, now, turn.id)
        if now >= self._placed_at + PLACES_S:
            self._placed_at = now
            self._places = {ticket: (position, eta_s) for position, ticket, eta_s in self._in_line(now)}
        known = self._places.get(turn.id)
        if known is None:  # it has come since then, or is being served
            if not self._scheduler.waits(turn.id):
                return None, self._scheduler.estimate(turn.model, now, turn.id)
            return len(self._places) + 1, self._scheduler.estimate(turn.model, now)
        return known[0], max(0.0, known[1] - (now - self._placed_at))
