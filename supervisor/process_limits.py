"""How long an engine's start, stop and silence may take, and how often it may fail."""

from __future__ import annotations

import msgspec

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings


class ProcessLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits in seconds, and counts. With `keep` a process that died is started again by itself."""

    start_timeout_s: float = 300.0
    stop_grace_s: float = 10.0
    max_failures: int = 3
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    stable_s: float = 30.0
    watchdog_s: float = 30.0
    keep: bool = False


def limits_of(profile: Profile, settings: SupervisorSettings, *, keep: bool) -> ProcessLimits:
    """The limits of a profile's process: its own, else the supervisor's."""
    return ProcessLimits(
        start_timeout_s=_first(profile.start_timeout_s, settings.start_timeout_s),
        stop_grace_s=_first(profile.stop_grace_s, settings.stop_grace_s),
        max_failures=settings.max_failures, backoff_s=settings.backoff_s, max_backoff_s=settings.max_backoff_s,
        stable_s=settings.stable_s, watchdog_s=settings.watchdog_s, keep=keep,
    )  # fmt: skip


def _first(value: float | None, default: float) -> float:
    return default if value is None else value
