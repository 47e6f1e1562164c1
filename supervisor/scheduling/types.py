"""The scheduler's settings and its decisions, as values. The orchestrator carries the decisions out."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from hostler.supervisor.contract import Failure, ModelLease

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
    "leased",
]

#: Why a lease was withdrawn while it was held: its model was unloaded by force, or its engine was stopped for queued
#: requests while its holder had vanished, or it was background work and other requests came.
RevokeReason = Literal["unloaded", "given_up", "preempted"]

#: The longest time and the largest number of a setting. More is as good as unlimited, and more than timers and frames carry.
MAX_SECONDS: Final = 10_000_000.0
MAX_COUNT: Final = 2**31 - 1

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one host's scheduler, times in seconds.

    `patience_s`: how long requests for a loaded model may overtake an older one for another model. `min_residency_s`:
    how long a model stays loaded at least. `max_waiting` and `max_wait_s` bound the queue; the load of
    a request's own model does not count. A host that has been without requests for `idle_s` loads models for background work.
    """

    patience_s: _Seconds = 10.0
    min_residency_s: _Seconds = 0.0
    max_waiting: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)] = 10
    max_wait_s: _Seconds = 120.0
    idle_s: _Seconds = 10.0

    def clamped(self) -> SchedulerSettings:
        """The same within the limits above."""
        return SchedulerSettings(
            patience_s=min(self.patience_s, MAX_SECONDS),
            min_residency_s=min(self.min_residency_s, MAX_SECONDS),
            max_waiting=min(self.max_waiting, MAX_COUNT),
            max_wait_s=min(self.max_wait_s, MAX_SECONDS),
            idle_s=min(self.idle_s, MAX_SECONDS),
        )


class Grant(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket holds a lease of the model from now until `Scheduler.release`."""

    ticket: int
    model: str


class Refuse(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket will not be served by this host. `failure` is the supervisor's reason, if it gave one,
    `model_lease` what keeps a model loaded that would have to be unloaded for it."""

    ticket: int
    model: str
    reason: RefusalReason
    retry_after_s: float
    failure: Failure | None = None
    model_lease: ModelLease | None = None


class Revoke(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The background work that holds this lease makes room for other requests: cut it off and release it."""

    ticket: int


class StartSwitch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop the models of `evict` (they hold no leases), then load `model`. Report `loaded` or `load_failed`."""

    id: int
    model: str
    evict: tuple[str, ...] = ()


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop `model`. Report `unloaded`, also if stopping failed."""

    model: str


class PrepareNext(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`model` is loaded as soon as answers of other models have ended: do for it what can be done before. With `start`
    it may be started beside them, if its memory is free. Replaces the last one; `None`: nothing is planned any more."""

    model: str | None
    start: bool = False


Decision = Grant | Refuse | Revoke | StartSwitch | Unload | PrepareNext
