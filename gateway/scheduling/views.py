"""A host as others see it: its models and who waits for them, and how near a request is to an answer. Plain values."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from hostler.gateway.scheduling.model import Model, ModelPhase, Room, evict
from hostler.gateway.scheduling.queue import Ticket


class Nearness(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What lies between a request and its answer on a host; less is nearer.

    `steps`: 0 the model is loaded · 1 is being loaded · 2 fits beside what is loaded · 3 something has to go for it ·
    4 it cannot be had. Then how busy the model is, in answers for each slot, then how busy the host is.
    """

    steps: int
    busy: float = 0.0
    around: int = 0


NOWHERE = Nearness(steps=4)


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model for dashboards. `draining`: it takes no new requests because another one's turn has come.

    `idle_until` is when it will be unloaded if nobody asks for it, by the clock that the scheduler is told.
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


def nearness(model: Model, models: Collection[Model], room: Room, now: float) -> Nearness:
    """How near a request for `model` is to being served, on a host that answers."""
    others = [other.resident() for other in models if other.phase != "cold"]
    if model.phase == "ready":
        steps = 0
    elif model.phase == "loading":
        steps = 1
    elif now < model.failed_until or (names := evict(model.resident(), others, room)) is None:
        return NOWHERE
    else:
        steps = 3 if names else 2
    busy = (len(model.line) + model.running) / model.parallel
    around = sum(len(other.line) + other.running for other in models)
    return Nearness(steps=steps, busy=busy, around=around)


def seen(model: Model) -> ModelView:
    """The model for dashboards."""
    return ModelView(
        model=model.name,
        phase=model.phase,
        running=model.running,
        parallel=model.parallel,
        waiting=len(model.line),
        draining=model.gate is not None or model.leaving,
        load_s=model.load_s,
        idle_until=model.idle_until if model.phase == "ready" else None,
    )
