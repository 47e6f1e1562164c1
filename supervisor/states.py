"""Which states a process may pass through, as a table. No process, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hostler.supervisor.contract import State

#: `backoff` and `failed` remember a failure; both fall back to `stopped` when their time is over.
TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    "stopped": frozenset({"starting"}),
    "starting": frozenset({"ready", "stopping", "backoff", "failed"}),
    "ready": frozenset({"stopping", "stopped", "backoff", "failed"}),
    "stopping": frozenset({"stopped", "backoff", "failed"}),
    "backoff": frozenset({"starting", "stopped"}),
    "failed": frozenset({"stopped"}),
}

#: States in which a process of the operating system may exist.
ALIVE: Final[frozenset[State]] = frozenset({"starting", "ready", "stopping"})


class ImpossibleTransition(AssertionError):
    """A state was assigned that the table does not allow: a mistake in this program, never in a model."""


def advance(current: State, following: State) -> State:
    """`following`, if the table lets `current` become it; raises `ImpossibleTransition` otherwise."""
    if following not in TRANSITIONS[current]:
        raise ImpossibleTransition(f"a process cannot go from {current} to {following}")
    return following


def after_failure(failures: int, max_failures: int) -> State:
    """Where a process goes that has now failed `failures` times in a row."""
    return "failed" if failures >= max_failures else "backoff"


def pause_s(failures: int, first_s: float, longest_s: float) -> float:
    """How long it rests after that many failures in a row: doubling, within `longest_s`."""
    return min(longest_s, first_s * 2.0 ** min(failures - 1, 30)) if failures > 0 else 0.0
