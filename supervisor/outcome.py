"""What an order comes to: told once, to any number who wait."""

from __future__ import annotations

import anyio

from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError


class Outcome:
    """What an order came to: an address or a failure. Any number may wait for it, cancelling one touches no other."""

    def __init__(self) -> None:
        self._settled = anyio.Event()
        self._address: EngineAddress | None = None
        self._failure: Failure | None = None

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    def settle(self, result: EngineAddress | Failure) -> None:
        """Tell all who wait. Only the first result counts."""
        if self._settled.is_set():
            return
        if isinstance(result, Failure):
            self._failure = result
        else:
            self._address = result
        self._settled.set()

    async def get(self) -> EngineAddress:
        """Wait for it; raises `SupervisorError`."""
        await self._settled.wait()
        if self._address is None:
            assert self._failure is not None
            raise SupervisorError(self._failure)
        return self._address
