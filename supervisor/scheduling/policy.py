"""Which models should be loaded next on a host, and when. What must stop for them is decided in `eviction`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import msgspec

from hostler.supervisor.contract import ModelLease
from hostler.supervisor.scheduling.eviction import HostCapacity, ModelFootprint, leases_in_the_way, models_to_evict
from hostler.supervisor.scheduling.model import ScheduledModel
from hostler.supervisor.scheduling.queue import QueueEntry, QueueRank
from hostler.supervisor.scheduling.types import SchedulerSettings


class PlannedLoad(msgspec.Struct, eq=False):
    """A model that may be loaded next, the first entry of its queue, and the models to evict for it.

    From `due` on the victims admit only entries that rank before `head`.
    """

    model: ScheduledModel
    head: QueueEntry
    victims: list[ScheduledModel]
    due: float

    def next_check(self, settings: SchedulerSettings, now: float) -> float:
        """When time alone can change this plan next; infinite if it cannot."""
        dues = [self.due, self.may_overlap_at(settings)] if self.victims else []
        for victim in self.victims:
            dues += [victim.since + settings.patience_s, victim.since + settings.min_residency_s]
        return min((due for due in dues if due > now), default=math.inf)

    def may_overlap_at(self, settings: SchedulerSettings) -> float:
        """From when on it may be started before the victims have finished: it is ready when patience ends, at the earliest."""
        stay = max((victim.since for victim in self.victims), default=-math.inf) + settings.min_residency_s
        return max(self.due - self.model.load_s, stay)

    def can_start(
        self, models: Collection[ScheduledModel], capacity: HostCapacity, settings: SchedulerSettings, now: float
    ) -> bool:
        """Whether the victims may be evicted now, and what stays (stopping models included) leaves enough memory."""
        for victim in self.victims:
            if victim.running or now < victim.since + settings.min_residency_s:
                return False
        if capacity.unlimited:
            return True
        rest = [state.footprint() for state in models if state.occupies_memory and state not in self.victims]
        return models_to_evict(self.model.footprint(), rest, capacity) == frozenset()


class LoadPlan(msgspec.Struct, frozen=True):
    """In the order of service: models to load, models whose foreign load is adopted, models that can never fit, and models
    for which a leased one would have to be unloaded, with the lease that ends last."""

    loads: list[PlannedLoad]
    adopted: list[ScheduledModel]
    impossible: list[ScheduledModel]
    barred: list[tuple[ScheduledModel, ModelLease]]


def plan_loads(models: Mapping[str, ScheduledModel], capacity: HostCapacity, settings: SchedulerSettings) -> LoadPlan:
    """Plan a load for each queue whose model is not loaded. Memory taken by one plan is not available to later ones."""
    wanted: list[tuple[QueueRank, ScheduledModel, QueueEntry]] = []
    live: dict[str, ModelFootprint] = {}
    plan = LoadPlan([], [], [], [])
    for state in models.values():
        if state.occupies_memory:
            live[state.name] = state.footprint()
        head = state.queue.head()
        if head is not None and state.phase == "cold":
            wanted.append((head.rank, state, head))
        elif head is not None and state.phase == "loading" and state.switch is None:
            plan.adopted.append(state)
    for _, state, head in sorted(wanted, key=lambda entry: entry[0]):
        due = state.queue.oldest().at + settings.patience_s
        names = models_to_evict(state.footprint(), live.values(), capacity)
        if names is None:
            if lease := _lease_in_the_way(state, models, live.values(), capacity):
                plan.barred.append((state, lease))
            else:
                plan.impossible.append(state)
            continue
        if any(live[name].activity == "moving" for name in names):
            # It comes after a switch that is under way or planned before it; its patience counts for that one, too.
            for earlier in plan.loads:
                earlier.due = min(earlier.due, due)
            continue
        for name in names:
            del live[name]
        live[state.name] = state.footprint("moving")
        plan.loads.append(PlannedLoad(state, head, [models[name] for name in sorted(names)], due))
    return plan


def _lease_in_the_way(
    wanted: ScheduledModel,
    models: Mapping[str, ScheduledModel],
    live: Collection[ModelFootprint],
    capacity: HostCapacity,
) -> ModelLease | None:
    names = leases_in_the_way(wanted.footprint(), live, capacity)
    leases = [lease for name in names if (lease := models[name].model_lease) is not None]
    return max(leases, key=lambda lease: lease.expires_at, default=None)


def passes_barrier(state: ScheduledModel, entry: QueueEntry, patience_s: float, now: float) -> bool:
    """Whether a loaded model admits the entry although one for another model has run out of patience."""
    barrier = state.barrier
    if barrier is None or entry.rank < barrier.rank:
        return True
    if not state.batch:
        return False
    # A batch is served together, but a large one of one client does not hold up another client for longer than its
    # patience: from then on no client is more than a round ahead.
    if now <= state.since + patience_s or state.queue.has_client(barrier.ticket.client):
        return True
    return entry.rank[1] < barrier.rank[1] + 1.0


def default_return(
    models: Iterable[ScheduledModel], returned_at: float, return_s: float
) -> tuple[float, ScheduledModel] | None:
    """When a host without queued requests will have been idle for `return_s`, and the default model to load again then;
    `None` while the host is busy, or if that model was not evicted. `returned_at` is when this was last tried."""
    idle_since, default = returned_at, None
    for state in models:
        if state.running or state.phase in ("loading", "stopping"):
            return None
        idle_since = max(idle_since, state.used_at)
        if state.default and state.displaced and state.known and state.phase == "cold":
            default = state
    return None if default is None else (idle_since + return_s, default)
