"""A host's models and queue as values: for dashboards, and to choose between hosts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import msgspec

from hostler.supervisor.scheduling.estimates import seconds_until_idle, seconds_until_served
from hostler.supervisor.scheduling.eviction import HostCapacity, ModelFootprint, models_to_evict
from hostler.supervisor.scheduling.model import ModelPhase, ScheduledModel
from hostler.supervisor.scheduling.queue import Ticket


class ServiceDistance(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """How far a request is from being served on a host; the smallest is the nearest.

    `steps`: 0 the model is loaded and has a free slot · 1 it is loading, and a slot will be free · 2 it fits beside the loaded
    models, or all of its slots are taken · 3 a model must be evicted · 4 it is not available. Then `wait_s`, from `steps` of 1
    on the estimated wait, infinite behind answers of unknown length, with what loading the evicted models again costs. Then
    `load`, the model's requests per slot, then `host_load`, the requests of the whole host.
    """

    steps: int
    wait_s: float = 0.0
    load: float = 0.0
    host_load: int = 0


UNAVAILABLE = ServiceDistance(steps=4)


class ServiceOutlook(msgspec.Struct, frozen=True, array_like=True):
    """What a model's distance follows from, besides the number of its requests.

    `steps` as in `ServiceDistance`, but with a free slot; `wait_s` is the estimated wait of a request that arrives now, and
    `turn_s` what each request before it adds to that, `None` as long as no answer was measured.
    """

    steps: int
    wait_s: float = 0.0
    turn_s: float | None = None


NO_OUTLOOK = ServiceOutlook(UNAVAILABLE.steps)


class HostOffer(msgspec.Struct, frozen=True, kw_only=True):
    """What a host offers to a request for a model, for a choice between hosts.

    `phase` is that of the model there. `load_s` is how long a load takes, a guess unless `load_measured`. Speeds as in
    `ModelSpeed`. `read_before` is how many bytes of the request's prompt the host has answered before.
    """

    distance: ServiceDistance
    phase: ModelPhase = "cold"
    load_s: float = 0.0
    load_measured: bool = False
    tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    answer_tokens: float | None = None
    read_before: int = 0

    @property
    def available(self) -> bool:
        """Whether the host can serve the request at all."""
        return self.distance.steps < UNAVAILABLE.steps


NO_OFFER = HostOffer(distance=UNAVAILABLE)


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model for dashboards. `draining`: it admits no new requests because another model is due.

    `idle_until` is when it will be unloaded unless it is used, by the scheduler's clock. `load_measured`: `load_s` is no
    guess. Speeds as in `ModelSpeed`.
    """

    model: str
    phase: ModelPhase
    running: int
    parallel: int
    waiting: int
    draining: bool
    load_s: float
    idle_until: float | None = None
    load_measured: bool = True
    tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    answer_tokens: float | None = None


class SchedulerView(msgspec.Struct, frozen=True, kw_only=True):
    """A host for dashboards; `waiting` is in the order of service."""

    models: tuple[ModelView, ...]
    waiting: tuple[Ticket, ...]
    max_waiting: int


def service_distance(
    model: ScheduledModel, models: Collection[ScheduledModel], capacity: HostCapacity, now: float
) -> ServiceDistance:
    """The distance of a request for `model`, on a host that is reachable."""
    others = {other.name: other.footprint() for other in models if other.occupies_memory}
    outlook = service_outlook(model, models, others, capacity, now)
    host_load = sum(len(other.queue) + other.running for other in models)
    return distance_by(outlook, len(model.queue) + model.running, model.parallel, host_load)


def service_outlook(
    model: ScheduledModel,
    models: Collection[ScheduledModel],
    others: Mapping[str, ModelFootprint],
    capacity: HostCapacity,
    now: float,
) -> ServiceOutlook:
    """See `ServiceOutlook`; `others` are those of `models` that are not cold, by name."""
    if model.phase in ("ready", "loading"):
        measured = model.measured_service_s
        return ServiceOutlook(
            0 if model.phase == "ready" else 1,
            seconds_until_served(model, len(model.queue), models, now),
            None if measured is None else measured / model.parallel,
        )
    if now < model.failed_until or (names := models_to_evict(model.footprint(), others.values(), capacity)) is None:
        return NO_OUTLOOK
    if not names:
        return ServiceOutlook(2, model.load_s)
    return ServiceOutlook(3, model.load_s + _cost_of_evicting([other for other in models if other.name in names], now))


def _cost_of_evicting(victims: Collection[ScheduledModel], now: float) -> float:
    """The rest of the victims' answers, and the seconds until all of them would be loaded again."""
    answers_s = max((seconds_until_idle(victim, now) for victim in victims), default=0.0)
    return answers_s + sum(victim.load_s if victim.evict_cost is None else victim.evict_cost for victim in victims)


def offer_by(view: ModelView | None, distance: ServiceDistance, read_before: int) -> HostOffer:
    """What a host offers, from its view of the model."""
    if view is None or distance.steps == UNAVAILABLE.steps:
        return NO_OFFER
    return HostOffer(
        distance=distance,
        phase=view.phase,
        load_s=view.load_s,
        load_measured=view.load_measured,
        tokens_per_s=view.tokens_per_s,
        prompt_tokens_per_s=view.prompt_tokens_per_s,
        answer_tokens=view.answer_tokens,
        read_before=read_before,
    )


def distance_by(
    outlook: ServiceOutlook, requests: int, parallel: int, host_load: int, *, before: int | None = None
) -> ServiceDistance:
    """The distance of one more request on a host where the model has so many; it had `before` at the time of `outlook`."""
    steps, wait_s = outlook.steps, outlook.wait_s if outlook.steps == 1 else 0.0
    if steps == UNAVAILABLE.steps:
        return UNAVAILABLE
    if steps < 2 and requests >= parallel:
        steps, wait_s = 2, math.inf
        if outlook.turn_s is not None:
            added = 0 if before is None else requests - max(before, parallel - 1)
            wait_s = max(0.0, outlook.wait_s + added * outlook.turn_s)
    elif steps >= 2:
        wait_s = outlook.wait_s
    return ServiceDistance(steps=steps, wait_s=wait_s, load=requests / parallel, host_load=host_load)


def view_of(model: ScheduledModel) -> ModelView:
    """The model for dashboards."""
    return ModelView(
        model=model.name,
        phase=model.phase,
        running=model.running,
        parallel=model.parallel,
        waiting=len(model.queue),
        draining=model.barrier is not None or model.unloading,
        load_s=model.load_s,
        idle_until=model.idle_until if model.phase == "ready" else None,
        load_measured=model.measured_load_s is not None,
        tokens_per_s=model.speed.tokens_per_s,
        prompt_tokens_per_s=model.speed.prompt_tokens_per_s,
        answer_tokens=model.speed.answer_tokens,
    )
