"""What would happen if a model were asked for now: what goes, who is interrupted, who waits, and for how long. Plain values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import msgspec

from hostler.gateway.switching.eviction import Room, evict
from hostler.gateway.switching.model import Model


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """A load that nobody has ordered yet. Times in seconds, from what was seen so far.

    `possible`: it fits at all. `stops` are the models that would go, `answers` how many answers of theirs are in progress
    and end first, `displaced` how many requests wait for those models and would then wait for a switch back. `ahead` is
    how many others are in line. `ready_s` is when an answer could begin.
    """

    model: str
    state: str
    possible: bool = True
    stops: tuple[str, ...] = ()
    answers: int = 0
    displaced: int = 0
    ahead: int = 0
    load_s: float = 0.0
    ready_s: float = 0.0


def forecast(model: Model, models: Mapping[str, Model], room: Room, ready_s: float, now: float) -> Forecast:
    """See `Forecast`. `ready_s` is the scheduler's own estimate for a request that comes now."""
    others = [other for other in models.values() if other is not model and other.phase != "cold"]
    stops: Collection[str] | None = ()
    if model.phase == "cold":
        stops = evict(model.resident(), [other.resident() for other in others], room)
    victims = [models[name] for name in sorted(stops or ())]
    lines = [model] if model.phase != "cold" else [other for other in models.values() if other not in victims]
    return Forecast(
        model=model.name,
        state=model.phase,
        possible=stops is not None and now >= model.failed_until,
        stops=tuple(victim.name for victim in victims),
        answers=sum(victim.running for victim in victims),
        displaced=sum(len(victim.line) for victim in victims),
        ahead=sum(len(other.line) for other in lines),
        load_s=round(model.load_s, 3),
        ready_s=round(ready_s, 3) if math.isfinite(ready_s) else 0.0,
    )
