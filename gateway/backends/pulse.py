"""Requests that wait at a backend which says nothing: is anybody there? If not, they are set free for the next hop.

A machine that froze, or whose cable was pulled, ends no connection: without this, whoever is there would wait for as
long as a long prompt may take to read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import anyio

from hostler.gateway.exchange import Exchange
from hostler.supervisor.contract import EngineAddress

logger = logging.getLogger(__name__)

#: Whoever has heard nothing for so long wants to know whether anybody is there, in seconds.
SILENCE_S = 2.0
#: So long that question may take, in seconds. It costs an idle server a millisecond and a busy one hardly more.
PULSE_ANSWER_S = 3.0

#: Whether anybody is at the place: an engine's address, or `None` for the backend's own.
Alive = Callable[[EngineAddress | None], Awaitable[bool]]
#: Nobody does: every request there ends, as one whose connection was lost.
Cut = Callable[[EngineAddress | None], None]


class Pulse:
    """The requests at one backend. One task looks after all of them, and only while there are any.

    Requests that still wait for a model to be loaded (`needs_address`) are not there yet. The backend surely answers
    questions beside so many requests (`beside`).
    """

    def __init__(
        self,
        name: str,
        *,
        alive: Alive,
        cut: Cut,
        needs_address: bool,
        beside: float = math.inf,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._name = name
        self._alive = alive
        self._cut = cut
        self._needs_address = needs_address
        self._beside = beside
        self._silence_s = silence_s
        self._here: set[Exchange] = set()
        self._some = anyio.Event()

    @property
    def busy(self) -> bool:
        """Whether it has so many requests that it may be silent beside them."""
        return len(self._here) > self._beside

    def enter(self, exchange: Exchange) -> None:
        """The request is sent there, or will be as soon as its model is loaded."""
        self._here.add(exchange)
        if not self._some.is_set():
            self._some.set()

    def leave(self, exchange: Exchange) -> None:
        """It has been answered, or has gone elsewhere."""
        self._here.discard(exchange)

    async def run(self) -> None:
        """Watch over them until cancelled."""
        while True:
            await self._some.wait()
            before = self._heard()
            await anyio.sleep(self._silence_s)
            for address in self._silent(before):
                await self._look(address, before)
            if not self._here:
                self._some = anyio.Event()

    async def _look(
        self, address: EngineAddress | None, before: dict[Exchange, tuple[EngineAddress | None, int]]
    ) -> None:
        if await self._alive(address) or address not in self._silent(before):
            return
        logger.warning("%s: nobody is there any more; its requests go on elsewhere", self._name)
        self._cut(address)

    def _heard(self) -> dict[Exchange, tuple[EngineAddress | None, int]]:
        """Who is where, and how much each has heard."""
        return {
            exchange: (exchange.address, exchange.heard)
            for exchange in self._here
            if exchange.address is not None or not self._needs_address
        }

    def _silent(self, before: dict[Exchange, tuple[EngineAddress | None, int]]) -> list[EngineAddress | None]:
        """The places where somebody has waited since then, and nobody has heard anything."""
        waited, spoken = set[EngineAddress | None](), set[EngineAddress | None]()
        for exchange, now in self._heard().items():
            then = before.get(exchange)
            if then == now:
                waited.add(now[0])
            elif then is not None and then[0] == now[0]:
                spoken.add(now[0])
        return [address for address in waited if address not in spoken]
