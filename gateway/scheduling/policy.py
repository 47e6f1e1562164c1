"""What should be loaded next on a host, what has to go for it, and when. Decides; whoever asked has it done."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import msgspec

from hostler.gateway.scheduling.model import Model, Resident, Room, evict
from hostler.gateway.scheduling.queue import Rank, Waiter
from hostler.gateway.scheduling.types import SchedulerRules


class Plan(msgspec.Struct, eq=False):
    """A model that may come next, the first of those who wait for it, and what has to make room.

    From `due` on the victims take no new requests, or only those that came before.
    """

    model: Model
    head: Waiter
    victims: list[Model]
    due: float

    def later(self, rules: SchedulerRules, now: float) -> float:
        """When this plan is to be looked at again at the latest, though nothing has happened meanwhile."""
        dues = [self.due] if self.victims else []
        for victim in self.victims:
            dues += [victim.since + rules.patience_s, victim.since + rules.min_residency_s]
        return min((due for due in dues if due > now), default=math.inf)

    def has_room(self, models: Collection[Model], room: Room, rules: SchedulerRules, now: float) -> bool:
        """Whether the victims are free to go, and what stays (also what is only about to stop) leaves enough room."""
        for victim in self.victims:
            if victim.running or now < victim.since + rules.min_residency_s:
                return False
        if not room.exclusive and room.budget_bytes is None:
            return True
        rest = [state.resident() for state in models if state.phase != "cold" and state not in self.victims]
        return evict(self.model.resident(), rest, room) == frozenset()


class Plans(msgspec.Struct, frozen=True):
    """In the order of those who wait: what may be loaded, whose load by somebody else is joined, what can never fit."""

    plans: list[Plan]
    joined: list[Model]
    unfit: list[Model]


def plan(models: Mapping[str, Model], room: Room, rules: SchedulerRules) -> Plans:
    """See `Plans`. What one plan takes is gone for the later ones."""
    wanted: list[tuple[Rank, Model, Waiter]] = []
    live: dict[str, Resident] = {}
    made = Plans([], [], [])
    for state in models.values():
        if state.phase != "cold":
            live[state.name] = state.resident()
        head = state.line.head()
        if head is not None and state.phase == "cold":
            wanted.append((head.rank, state, head))
        elif head is not None and state.phase == "loading" and state.switch is None:
            made.joined.append(state)
    for _, state, head in sorted(wanted, key=lambda entry: entry[0]):
        due = state.line.oldest().at + rules.patience_s
        names = evict(state.resident(), live.values(), room)
        if names is None:
            made.unfit.append(state)
            continue
        if any(live[name].use == "moving" for name in names):
            # Its turn comes after a switch that is under way or comes first; its patience counts for that one too.
            for earlier in made.plans:
                earlier.due = min(earlier.due, due)
            continue
        for name in names:
            del live[name]
        live[state.name] = state.resident("moving")
        made.plans.append(Plan(state, head, [models[name] for name in sorted(names)], due))
    return made
