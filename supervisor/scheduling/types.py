"""The scheduler's settings and its decisions, as values. The orchestrator carries the decisions out."""

from __future__ import annotations

from typing import Literal

import msgspec

from hostler.supervisor.contract import Failure

RefusalReason = Literal[
    "queue_full",
    "model_queue_full",
    "wait_limit",
    "load_failed",
    "does_not_fit",
    "unloaded",
    "unknown_model",
    "host_gone",
    "stopping",
    "invalid",
]


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one host's scheduler, times in seconds.

    `patience_s`: how long requests for a loaded model may overtake an older one for another model. `min_residency_s`:
    how long a model stays loaded at least. `max_waiting` and `max_wait_s` bound the queue; the load of
    a request's own model does not count.
    """

    patience_s: float = 10.0
    min_residency_s: float = 0.0
    max_waiting: int = 10
    max_wait_s: float = 120.0


class Grant(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket holds a lease of the model from now until `Scheduler.release`."""

    ticket: int
    model: str


class Refuse(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket will not be served by this host. `failure` is the supervisor's reason, if it gave one."""

    ticket: int
    model: str
    reason: RefusalReason
    retry_after_s: float
    failure: Failure | None = None


class StartSwitch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop the models of `evict` (they hold no leases), then load `model`. Report `loaded` or `load_failed`."""

    id: int
    model: str
    evict: tuple[str, ...] = ()


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop `model`. Report `unloaded`, also if stopping failed."""

    model: str


Decision = Grant | Refuse | StartSwitch | Unload
