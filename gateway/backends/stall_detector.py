"""Detects backends that vanished in mid-request, and ends their requests so that these can fail over."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import anyio

from hostler.gateway.context import Attempt
from hostler.supervisor.contract import EngineAddress

logger = logging.getLogger(__name__)

#: Silence of a backend after which it is checked, in seconds.
SILENCE_S = 2.0

#: Whether anything responds at an engine's address, or (`None`) at the backend's own.
IsAlive = Callable[[EngineAddress | None], Awaitable[bool]]
#: Ends every request at that address, as if its connection had been lost.
DropRequests = Callable[[EngineAddress | None], None]
#: The address of each attempt, and how many segments it has received.
_Received = dict[Attempt, tuple[EngineAddress | None, int]]


class StallDetector:
    """Watches the attempts at one backend, in one task, and only while there are any.

    Attempts without an address are watched together: all those at a plain server, and at a supervised machine those that
    wait for their model. `max_requests` is the number of requests beside which the backend certainly answers health checks.
    """

    def __init__(
        self,
        name: str,
        *,
        is_alive: IsAlive,
        drop: DropRequests,
        max_requests: float = math.inf,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._name = name
        self._is_alive = is_alive
        self._drop = drop
        self._max_requests = max_requests
        self._silence_s = silence_s
        self._attempts: set[Attempt] = set()
        self._started = anyio.Event()

    @property
    def busy(self) -> bool:
        """Whether the backend has so many requests that it may not answer health checks."""
        return len(self._attempts) > self._max_requests

    def enter(self, attempt: Attempt) -> None:
        """The attempt is made at this backend, or will be as soon as its model is loaded."""
        self._attempts.add(attempt)
        if not self._started.is_set():
            self._started.set()

    def leave(self, attempt: Attempt) -> None:
        """The attempt has ended."""
        self._attempts.discard(attempt)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._started.wait()
            before = self._received()
            await anyio.sleep(self._silence_s)
            for address in self._silent_since(before):
                await self._check(address, before)
            if not self._attempts:
                self._started = anyio.Event()

    async def _check(self, address: EngineAddress | None, before: _Received) -> None:
        if await self._is_alive(address) or address not in self._silent_since(before):
            return
        logger.warning("%s: not responding; failing over its in-flight requests", self._name)
        self._drop(address)

    def _received(self) -> _Received:
        return {attempt: (attempt.address, attempt.segments) for attempt in self._attempts}

    def _silent_since(self, before: _Received) -> list[EngineAddress | None]:
        """Addresses with in-flight requests that received nothing since `before`."""
        waiting, served = set[EngineAddress | None](), set[EngineAddress | None]()
        for attempt, now in self._received().items():
            then = before.get(attempt)
            if then == now:
                waiting.add(now[0])
            elif then is not None and then[0] == now[0]:
                served.add(now[0])
        return [address for address in waiting if address not in served]
