"""One order to make a model ready: who waits for it, which phase it is in, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final, get_args

import anyio

from hostler.profiles.sources import FetchProgress
from hostler.supervisor.contract import EngineAddress, Failure, SwitchMoved, SwitchPhase
from hostler.supervisor.life import Phase
from hostler.supervisor.outcome import Outcome
from hostler.supervisor.process import ManagedProcess

#: How often the progress of a load is told.
TICK_S: Final = 0.5

_ORDER: Final[tuple[SwitchPhase, ...]] = get_args(SwitchPhase)

_OF_TARGET: Final[dict[Phase, SwitchPhase]] = {
    "preparing": "starting", "starting": "starting", "loading": "loading", "restoring": "restoring",
}  # fmt: skip


class Order:
    """A switch under way. Phases only ever go forward; each is told once, a load's progress every half second."""

    def __init__(
        self, number: str, model: str, evict: Collection[str], *, expected_s: float | None,
        tell: Callable[[SwitchMoved], None],
    ) -> None:  # fmt: skip
        self.number = number
        self.model = model
        self.evict = frozenset(evict)
        self.outcome = Outcome()
        self.scope = anyio.CancelScope()
        self.victims: tuple[str, ...] = ()
        self.load_s = 0.0
        self._expected_s = expected_s
        self._tell = tell
        self._began = self._entered = time.monotonic()
        self._phase: SwitchPhase | None = None
        self._spent: dict[str, float] = {}
        self._progress: float | None = None
        self._fetched: float | None = None

    def hear(self, process: ManagedProcess) -> None:
        """Some process changed: it may be the one that is wanted, or one that has to go for it."""
        if process.model == self.model:
            self._progress = process.progress
            phase = _OF_TARGET.get(process.phase)
            if phase is not None:
                self.enter(phase)
        elif process.model in self.victims and process.phase in ("saving", "stopping"):
            self.enter("saving" if process.phase == "saving" else "stopping")

    def fetching(self, progress: FetchProgress) -> None:
        """The model's file is being fetched."""
        if progress.phase != "done" and self._phase is None:
            self.enter("fetching")
        self._fetched = progress.completed / progress.total if progress.total else None

    def enter(self, phase: SwitchPhase, failure: Failure | None = None) -> None:
        """The next phase; an earlier one or the same is ignored."""
        if self._phase is not None and _ORDER.index(phase) <= _ORDER.index(self._phase):
            return
        now = time.monotonic()
        if self._phase is not None:
            self._spent[self._phase] = now - self._entered
        elif now - self._began >= 0.001:
            # Before the first phase it waited for its turn, or for the file to be there.
            self._spent["waiting"] = now - self._began
        self._phase, self._entered = phase, now
        self._tell(self.moved(failure))

    def done(self, address: EngineAddress) -> None:
        """It is ready."""
        self.enter("ready")
        self.load_s = sum(self._spent.get(phase, 0.0) for phase in ("starting", "loading", "restoring"))
        self.outcome.settle(address)

    def fail(self, failure: Failure) -> None:
        """It cannot be had."""
        self.enter("failed", failure)
        self.outcome.settle(failure)

    def cancel(self, failure: Failure) -> None:
        """Nobody wants it any more."""
        self.fail(failure)
        self.scope.cancel()

    async def tick(self) -> None:
        """Tell how far the load is, every now and then, for ever."""
        while True:
            await anyio.sleep(TICK_S)
            if self._phase in ("fetching", "starting", "loading", "restoring"):
                self._tell(self.moved())

    @property
    def spent(self) -> dict[str, float]:
        """Where the time went so far: finished phases, in seconds."""
        return {phase: round(seconds, 6) for phase, seconds in self._spent.items()}

    @property
    def percent(self) -> float | None:
        """How much is fetched, or loaded: by the time it took before, else by what the engine says."""
        if self._phase == "ready":
            return 100.0
        if self._phase == "fetching":
            return None if self._fetched is None else 100.0 * self._fetched
        if self._phase not in ("starting", "loading", "restoring"):
            return None
        if self._expected_s:
            return min(99.0, 100.0 * self._loading_s() / self._expected_s)
        return None if self._progress is None else min(99.0, 100.0 * self._progress)

    @property
    def eta_s(self) -> float | None:
        """Seconds until ready, if loads of this model are known to take a certain time."""
        if self._phase == "fetching":
            took = time.monotonic() - self._entered
            return took / self._fetched - took + (self._expected_s or 0.0) if self._fetched else None
        if self._expected_s is None or self._phase in ("ready", "failed"):
            return None
        return max(0.0, self._expected_s - self._loading_s())

    def moved(self, failure: Failure | None = None) -> SwitchMoved:
        """The order as an event, as it is now."""
        return SwitchMoved(
            id=self.number, model=self.model, phase=self._phase or "draining", from_models=self.victims,
            percent=self.percent, eta_s=self.eta_s, elapsed_s=time.monotonic() - self._began,
            spent=dict(self._spent), failure=failure,
        )  # fmt: skip

    def _loading_s(self) -> float:
        before = sum(self._spent.get(phase, 0.0) for phase in ("starting", "loading", "restoring"))
        now = time.monotonic() - self._entered if self._phase in ("starting", "loading", "restoring") else 0.0
        return before + now
