"""One start of an engine, and its result for all that wait for it."""

from __future__ import annotations

import anyio

from hostler.supervisor.child import Child
from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError
from hostler.supervisor.engine_command import EngineCommand
from hostler.supervisor.readiness import Readiness


class StartResult:
    """A future address or failure. Any number may wait for it; cancelling one waiter does not affect the others.

    Until `may_load` is set the engine holds before it takes memory for its model, if it can.
    """

    def __init__(self, *, held: bool = False) -> None:
        self._settled = anyio.Event()
        self.may_load = anyio.Event()
        if not held:
            self.may_load.set()
        self._address: EngineAddress | None = None
        self._failure: Failure | None = None

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    def settle(self, result: EngineAddress | Failure) -> None:
        """Set the result. Only the first one counts."""
        if self._settled.is_set():
            return
        if isinstance(result, Failure):
            self._failure = result
        else:
            self._address = result
        self._settled.set()

    async def wait(self) -> EngineAddress:
        """Wait for the address. Raises `SupervisorError`."""
        await self._settled.wait()
        if self._address is None:
            assert self._failure is not None
            raise SupervisorError(self._failure)
        return self._address


class Generation:
    """One start of the engine, up to the end of its last process. Its result reaches only the callers that wait for it."""

    def __init__(self, number: int, result: StartResult) -> None:
        self.number = number
        self.result = result
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.readiness = Readiness()
        self.command: EngineCommand | None = None
        self.cancelled = False
        #: Whether it sleeps instead of being stopped, if it can.
        self.sleeps = False
        self.child: Child | None = None
        self.address: EngineAddress | None = None
        self.restored = False
        self.failure: Failure | None = None

    def cancel(self) -> None:
        """End it, whatever it is doing."""
        self.cancelled = True
        self.scope.cancel()

    @property
    def serving(self) -> bool:
        return self.address is not None and not self.cancelled and self.child is not None and self.child.running
