"""The state of one model's engine process. `ManagedProcess` changes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from hostler.supervisor.contract import EngineAddress, Failure, State
from hostler.supervisor.engine_sleep import SleepingEngine
from hostler.supervisor.generation import Generation
from hostler.supervisor.states import advance

ProcessPhase = Literal["idle", "held", "preparing", "starting", "loading", "restoring", "ready", "saving", "stopping"]


class ProcessState:
    """What the process of `model` is doing. `on_change` is called after each change.

    For display and snapshots: a decision to start or stop must not depend on it.
    """

    def __init__(self, model: str, on_change: Callable[[], None]) -> None:
        self.model = model
        self._on_change = on_change
        self._state: State = "stopped"
        self._phase: ProcessPhase = "idle"
        self._since = time.time()
        self._generation = 0
        self._failure: Failure | None = None
        self._current: Generation | None = None
        self._asleep: SleepingEngine | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def phase(self) -> ProcessPhase:
        """What exactly it is doing within its state."""
        return self._phase

    @property
    def since(self) -> float:
        """When the state was entered, in seconds since the epoch."""
        return self._since

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def failure(self) -> Failure | None:
        """Why it last failed, until it is ready again."""
        return self._failure

    @property
    def alive(self) -> bool:
        """Whether any of its processes may exist, even one that is being stopped."""
        return self._current is not None

    @property
    def staying(self) -> bool:
        """Whether it runs or starts, and is not about to end."""
        current = self._current
        return current is not None and not current.cancelled and current.failure is None

    @property
    def held(self) -> bool:
        """Whether it starts, but may not load its model yet."""
        return self._current is not None and not self._current.result.may_load.is_set()

    @property
    def asleep(self) -> bool:
        """Whether its engine sleeps: it does not serve, and its process still exists."""
        return self._asleep is not None

    @property
    def pid(self) -> int | None:
        if self._asleep is not None:
            return self._asleep.pid
        child = self._current.child if self._current is not None else None
        return child.pid if child is not None and child.returncode is None else None

    @property
    def progress(self) -> float | None:
        """The loaded share of the file, 0 to 1, if the engine reports it."""
        return self._current.readiness.progress if self._current is not None and self._state == "starting" else None

    @property
    def address(self) -> EngineAddress | None:
        """Where it listens, if it is ready now."""
        current = self._current
        return current.address if current is not None and self._state == "ready" and current.serving else None

    def _enter(self, state: State, phase: ProcessPhase | None = None) -> None:
        """The only place where the state changes."""
        self._state = advance(self._state, state)
        self._since = time.time()
        self._phase = phase or ("idle" if state == "stopped" else self._phase)
        self._on_change()

    def _set_phase(self, phase: ProcessPhase) -> None:
        if phase != self._phase:
            self._phase = phase
            self._on_change()
