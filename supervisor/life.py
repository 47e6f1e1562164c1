"""One life of a model's process, what bounds it, and what others do at its fixed points. `process.py` lives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import anyio
import msgspec

from hostler.supervisor.child import Child
from hostler.supervisor.command import Command
from hostler.supervisor.contract import EngineAddress, Failure
from hostler.supervisor.outcome import Outcome
from hostler.supervisor.readiness import Readiness

Phase = Literal["idle", "preparing", "starting", "loading", "restoring", "ready", "saving", "stopping"]

#: Given a port and a key, the command line.
Build = Callable[[int, str], Command]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The times and counts of one process; seconds. With `keep` it is started again by itself when it died."""

    start_timeout_s: float = 300.0
    stop_grace_s: float = 10.0
    max_failures: int = 3
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    stable_s: float = 30.0
    watchdog_s: float = 30.0
    keep: bool = False


class Hooks:
    """What others do at fixed points of a life. Replace what is needed; each is bounded by a limit of its own.

    `prepare` runs before anything is started and may take long (a download); it may raise `SupervisorError`.
    `ready` runs when the engine answers and before anybody is told, `stopping` before an engine is told to end.
    """

    async def prepare(self) -> Build:
        raise NotImplementedError

    async def ready(self, address: EngineAddress) -> None:
        """The engine answers; nobody else uses it yet."""

    async def stopping(self, address: EngineAddress) -> None:
        """The engine still answers; it will be stopped next."""


class Life:
    """One generation, from the order to the end of its last process. Its results reach only those who wait for it."""

    def __init__(self, generation: int, outcome: Outcome) -> None:
        self.generation = generation
        self.outcome = outcome
        self.scope = anyio.CancelScope()
        self.gone = anyio.Event()
        self.readiness = Readiness()
        self.doomed = False
        self.child: Child | None = None
        self.address: EngineAddress | None = None
        self.was_restoring = False
        self.failure: Failure | None = None

    def doom(self) -> None:
        """This generation is to end, whatever it is at."""
        self.doomed = True
        self.scope.cancel()

    @property
    def serving(self) -> bool:
        return self.address is not None and not self.doomed and self.child is not None and self.child.running
