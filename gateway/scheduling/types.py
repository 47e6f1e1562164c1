"""What a scheduler is told to go by, and what it decides: values that its orchestrator carries out."""

from __future__ import annotations

from typing import Literal

import msgspec

from hostler.supervisor.contract import Failure

Cause = Literal["queue_full", "wait_limit", "load_failed", "does_not_fit", "unloaded", "unknown_model", "host_gone"]


class SchedulerRules(msgspec.Struct, frozen=True, kw_only=True):
    """How long others may be overtaken, how long a model stays at least, how many may wait and how long."""

    patience_s: float = 10.0
    min_residency_s: float = 0.0
    max_waiting: int = 10
    max_wait_s: float = 120.0


class Grant(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket may use the model now, until `release`."""

    ticket: int
    model: str


class Refuse(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The ticket will not be served here. `failure` is the supervisor's reason, if it gave one."""

    ticket: int
    model: str
    cause: Cause
    retry_after_s: float
    failure: Failure | None = None


class Switch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop the models of `evict` (nobody uses them any more), then load `model`; report `loaded` or `failed`."""

    id: int
    model: str
    evict: tuple[str, ...] = ()


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop `model`; report `unloaded`, also if the order failed."""

    model: str


Effect = Grant | Refuse | Switch | Unload
