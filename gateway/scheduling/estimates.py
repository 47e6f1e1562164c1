"""How long it will take, from how long it took: what `Retry-After` and the time shown to those who wait come from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import msgspec

from hostler.gateway.scheduling.model import Model, Room, evict


def until_served(model: Model, ahead: int, others: Collection[Model], now: float) -> float:
    """In how many seconds a request for `model` is served that has `ahead` others before it in the model's line."""
    served = model.service_s / model.parallel
    if model.phase == "ready" and model.gate is None and not model.leaving:
        return (ahead + (model.running >= model.parallel)) * served
    if model.phase == "loading":
        return _rest_of_load(model, now) + ahead * served
    return _until_room(model, others, now) + model.load_s + ahead * served


def rests_on_seen(model: Model, ahead: int, others: Collection[Model]) -> bool:
    """Whether nothing in `until_served` is a guess: each load and each answer that counts was seen before."""
    if ahead and model.seen_service_s is None:
        return False
    if model.phase == "ready" and model.gate is None and not model.leaving:
        return model.running < model.parallel or model.seen_service_s is not None
    if model.seen_load_s is None:
        return False
    return model.phase == "loading" or all(_seen(other) for other in _before(model, others))


def until_place(models: Collection[Model], now: float) -> float:
    """In how many seconds one of those who wait is served and leaves a place; 0 if nobody waits."""
    firsts = [_until_next(model, models, now) for model in models if model.line]
    return min(firsts, default=0.0)


def _until_next(model: Model, models: Collection[Model], now: float) -> float:
    """Until the first in the model's line is served."""
    if model.phase == "ready" and model.gate is None and not model.leaving:
        return model.service_s / model.parallel
    if model.phase == "loading":
        return _rest_of_load(model, now)
    return _until_room(model, models, now) + model.load_s


def _rest_of_load(model: Model, now: float) -> float:
    return max(model.load_s - (now - model.since), 0.1 * model.load_s)


def _until_room(model: Model, models: Collection[Model], now: float) -> float:
    """Until the loads and answers that come before a load of `model` are over."""
    seconds = 0.0
    for other in _before(model, models):
        line_s = len(other.line) * other.service_s / other.parallel
        if other.phase == "loading":
            seconds += _rest_of_load(other, now) + line_s
        elif other.phase == "ready":
            seconds += other.service_s
        else:
            seconds += other.load_s + line_s
    return seconds


def _before(model: Model, models: Collection[Model]) -> Iterator[Model]:
    """Those whose loads and answers come before a load of `model`."""
    head = model.line.head()
    rank = (math.inf, math.inf, math.inf) if head is None else head.rank
    for other in models:
        if other is model:
            continue
        first = other.line.head()
        if (
            other.phase == "loading"
            or (other.phase == "ready" and other.running)
            or (other.phase == "cold" and first is not None and first.rank < rank)
        ):
            yield other


def _seen(other: Model) -> bool:
    """Whether what `_until_room` counts of a model was seen before."""
    loads, answers = other.phase != "ready", other.phase == "ready" or len(other.line)
    return not (loads and other.seen_load_s is None) and not (answers and other.seen_service_s is None)


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
