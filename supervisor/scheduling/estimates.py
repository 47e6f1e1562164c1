"""How long requests will wait, estimated from measured loads and answers: for `Retry-After` and shown progress."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import msgspec

from hostler.supervisor.scheduling.eviction import HostCapacity, models_to_evict
from hostler.supervisor.scheduling.model import ScheduledModel

#: The time of an answer in a line of refused requests until one was measured, and the shortest one, in seconds.
_GUESSED_S, _INSTANT_S = 1.0, 0.001
#: What takes longer than estimated by this share and these seconds is overdue.
_TOLERANCE, _TOLERANCE_S = 0.1, 1.0


def is_overdue(elapsed_s: float, usual_s: float) -> bool:
    """Whether something takes longer than usual, so that there is no estimate any more."""
    return elapsed_s > usual_s * (1 + _TOLERANCE) + _TOLERANCE_S


def seconds_until_served(model: ScheduledModel, ahead: int, models: Collection[ScheduledModel], now: float) -> float:
    """The wait of a request for `model` with `ahead` others before it in the model's queue."""
    served = model.service_s / model.parallel
    if _admits(model):
        return (ahead + (model.running >= model.parallel)) * served
    if model.phase == "loading":
        return _rest_of_load(model, now) + ahead * served
    return _until_memory_is_free(model, models, now) + model.load_s + ahead * served


def seconds_until_idle(model: ScheduledModel, now: float) -> float:
    """Until what runs and waits for a model is done, as far as that is known."""
    if not (model.running or model.queue):
        return 0.0
    return _rest_of_answers(model, now) + len(model.queue) * model.service_s / model.parallel


def is_measured(model: ScheduledModel, ahead: int, models: Collection[ScheduledModel], now: float) -> bool:
    """Whether `seconds_until_served` rests on measurements alone: every load and answer in it was seen before, and none takes
    longer than usual."""
    if ahead and model.measured_service_s is None:
        return False
    if _admits(model):
        return model.running < model.parallel or _answers_are_measured(model, now)
    if model.phase == "loading":
        return _load_is_measured(model)
    return model.measured_load_s is not None and all(_share_is_measured(other, now) for other in _before(model, models))


def queue_slots(
    queues: Collection[ScheduledModel], models: Collection[ScheduledModel], now: float
) -> tuple[float, float]:
    """The time until the first request queued for one of `queues` is served and its place is free, and from each such
    time to the next; 0 if none is queued. `models` are all of the host.

    Loaded models serve at once, others in turns.
    """
    queued = [model for model in queues if model.queue]
    if not queued:
        return 0.0, 0.0
    serving = [model for model in queued if _admits(model)] or queued[:1]
    interval_s = 1.0 / sum(model.parallel / max(_INSTANT_S, _service_s(model)) for model in serving)
    return min(_until_next(model, models, now) for model in queued), interval_s


def _service_s(model: ScheduledModel) -> float:
    """As `service_s`, with a lower guess: a crowd that is sent away for too long leaves the host idle."""
    return _GUESSED_S if model.measured_service_s is None else model.measured_service_s


def _admits(model: ScheduledModel) -> bool:
    return model.phase == "ready" and model.barrier is None and not model.unloading


def _until_next(model: ScheduledModel, models: Collection[ScheduledModel], now: float) -> float:
    """Until the head of the model's queue is served."""
    if _admits(model):
        return model.service_s / model.parallel
    if model.phase == "loading":
        return _rest_of_load(model, now)
    return _until_memory_is_free(model, models, now) + model.load_s


def _rest_of_load(model: ScheduledModel, now: float) -> float:
    if model.ready_at is not None:
        return max(0.0, model.ready_at - now)
    return max(model.load_s - (now - model.since), 0.1 * model.load_s)


def _rest_of_answers(model: ScheduledModel, now: float) -> float:
    """Until the running answers have ended, by the oldest of them."""
    if model.serving_since is None:
        return model.service_s
    return max(0.0, model.service_s - (now - model.serving_since))


def _until_memory_is_free(model: ScheduledModel, models: Collection[ScheduledModel], now: float) -> float:
    """Until the loads and answers that precede a load of `model` are over."""
    seconds = 0.0
    for other in _before(model, models):
        queue_s = len(other.queue) * other.service_s / other.parallel
        if other.phase == "loading":
            seconds += _rest_of_load(other, now) + queue_s
        elif other.phase == "ready":
            seconds += _rest_of_answers(other, now)
        else:
            seconds += other.load_s + queue_s
    return seconds


def _before(model: ScheduledModel, models: Collection[ScheduledModel]) -> Iterator[ScheduledModel]:
    """The models whose loads and answers precede a load of `model`."""
    head = model.queue.head()
    rank = (math.inf, math.inf, math.inf) if head is None else head.rank
    for other in models:
        if other is model:
            continue
        first = other.queue.head()
        if (
            other.phase == "loading"
            or (other.phase == "ready" and other.running)
            or (other.phase == "cold" and first is not None and first.rank < rank)
        ):
            yield other


def _share_is_measured(other: ScheduledModel, now: float) -> bool:
    """Whether what `_until_memory_is_free` counts of a model was measured."""
    if other.phase == "ready":
        return _answers_are_measured(other, now)
    if len(other.queue) and other.measured_service_s is None:
        return False
    return _load_is_measured(other) if other.phase == "loading" else other.measured_load_s is not None


def _load_is_measured(model: ScheduledModel) -> bool:
    return not model.overdue and (model.ready_at is not None or model.measured_load_s is not None)


def _answers_are_measured(model: ScheduledModel, now: float) -> bool:
    if model.measured_service_s is None:
        return False
    return model.serving_since is None or not is_overdue(now - model.serving_since, model.service_s)


class SwitchEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What loading a model now would take and displace. Times in seconds, estimated.

    `possible`: it fits and did not just fail. `stops` are the models that would be evicted, `answers` their answers in
    progress, which end first, `displaced` the requests queued for them, which would wait for a switch back. `ahead` is
    the number of other queued requests. `ready_s` is when an answer could begin.
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


def estimate_switch(
    model: ScheduledModel, models: Mapping[str, ScheduledModel], capacity: HostCapacity, ready_s: float, now: float
) -> SwitchEstimate:
    """See `SwitchEstimate`. `ready_s` is the wait of a request that arrives now."""
    others = [other for other in models.values() if other is not model and other.occupies_memory]
    stops: Collection[str] | None = ()
    if model.phase == "cold":
        stops = models_to_evict(model.footprint(), [other.footprint() for other in others], capacity)
    victims = [models[name] for name in sorted(stops or ())]
    queues = [model] if model.phase != "cold" else [other for other in models.values() if other not in victims]
    return SwitchEstimate(
        model=model.name,
        state=model.phase,
        possible=stops is not None and now >= model.failed_until,
        stops=tuple(victim.name for victim in victims),
        answers=sum(victim.running for victim in victims),
        displaced=sum(len(victim.queue) for victim in victims),
        ahead=sum(len(other.queue) for other in queues),
        load_s=round(model.load_s, 3),
        ready_s=round(ready_s, 3) if math.isfinite(ready_s) else 0.0,
    )
