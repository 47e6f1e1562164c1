"""A host's models and queue as values: for dashboards, and to choose between hosts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from hostler.supervisor.scheduling.eviction import HostCapacity, ModelFootprint, models_to_evict
from hostler.supervisor.scheduling.model import ModelPhase, ScheduledModel
from hostler.supervisor.scheduling.queue import Ticket


class ServiceDistance(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """How far a request is from being served on a host; the smallest is the nearest.

    `steps`: 0 the model is loaded · 1 it is loading · 2 it fits beside the loaded models · 3 a model must be evicted ·
    4 it is not available. Then `load`, the model's requests per slot, then `host_load`, the requests of the whole host.
    """

    steps: int
    load: float = 0.0
    host_load: int = 0


UNAVAILABLE = ServiceDistance(steps=4)


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model for dashboards. `draining`: it admits no new requests because another model is due.

    `idle_until` is when it will be unloaded unless it is used, by the scheduler's clock.
    """

    model: str
    phase: ModelPhase
    running: int
    parallel: int
    waiting: int
    draining: bool
    load_s: float
    idle_until: float | None = None


class SchedulerView(msgspec.Struct, frozen=True, kw_only=True):
    """A host for dashboards; `waiting` is in the order of service."""

    models: tuple[ModelView, ...]
    waiting: tuple[Ticket, ...]
    max_waiting: int


def service_distance(
    model: ScheduledModel, models: Collection[ScheduledModel], capacity: HostCapacity, now: float
) -> ServiceDistance:
    """The distance of a request for `model`, on a host that is reachable."""
    others = {other.name: other.footprint() for other in models if other.phase != "cold"}
    steps = steps_until_served(model, others, capacity, now)
    if steps == UNAVAILABLE.steps:
        return UNAVAILABLE
    load = (len(model.queue) + model.running) / model.parallel
    host_load = sum(len(other.queue) + other.running for other in models)
    return ServiceDistance(steps=steps, load=load, host_load=host_load)


def steps_until_served(
    model: ScheduledModel, others: Mapping[str, ModelFootprint], capacity: HostCapacity, now: float
) -> int:
    """The `steps` of the model's distance; `others` are the models that are not cold, by name."""
    if model.phase == "ready":
        return 0
    if model.phase == "loading":
        return 1
    if now < model.failed_until or (names := models_to_evict(model.footprint(), others.values(), capacity)) is None:
        return UNAVAILABLE.steps
    return 3 if names else 2


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
    )
