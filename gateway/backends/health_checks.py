"""Asks backends for a sign of life in the background, so that requests need not find out who is down.

One task and one probe at a time for each backend. What a probe says goes to the backend's `CircuitBreakers`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import anyio
import msgspec

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendTimeout, GatewayError
from hostler.gateway.backends.base import Endpoint, Timeouts, Transport
from hostler.gateway.backends.circuit_breaker import CircuitBreakers
from hostler.gateway.backends.http_pool import Pooling
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.context import Attempt
from hostler.supervisor.contract import EngineAddress

#: A probe takes so long at most, from its first byte to the head of the answer, in seconds.
ANSWER_S = 5.0

Ask = Callable[[], Awaitable[bool]]
#: `silent` takes connections and says nothing: it hangs, or all of its threads have work.
Sign = Literal["answers", "silent", "nobody"]


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """A backend to watch. `ask` tells whether it answers, and never raises.

    `every_s` of `None` asks only when somebody suspects something. `down_every_s` of `None` asks once then: something
    else tells when the backend is back.
    """

    name: str
    standing: CircuitBreakers
    ask: Ask
    takes_s: float
    every_s: float | None = None
    down_every_s: float | None = None


class Watch:
    """One backend's probes, as long as `run` runs."""

    def __init__(self, probed: Probed, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._probed = probed
        self._clock = clock
        self._random = random
        self._suspected = anyio.Event()
        self.up = True
        self.probes = 0

    def suspect(self) -> None:
        """An attempt could not reach it: it is asked at once, and until it has answered no request has to."""
        if not self._suspected.is_set():
            self._probed.standing.host.cool(self._clock() + self._probed.takes_s)
            self._suspected.set()

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        probed = self._probed
        if probed.every_s is not None:
            await self._rest(min(1.0, probed.every_s))  # not all at once
        while True:
            if probed.every_s is not None or not self.up or self._suspected.is_set():
                await self._probe()
            interval_s = probed.every_s if self.up else probed.down_every_s
            await self._rest(interval_s)

    async def _probe(self) -> None:
        probed = self._probed
        self.probes += 1
        suspected = self._suspected.is_set()
        answers = await probed.ask()
        self._suspected = anyio.Event()
        self.up = answers
        if answers:
            probed.standing.recovered()
        else:
            # Until the next probe has been answered, with what chance may add.
            next_s = (probed.down_every_s or 0.0) * 1.2 + probed.takes_s
            probed.standing.unanswered(self._clock(), next_s, confirms=suspected)
            if probed.down_every_s is None:
                self.up = True

    async def _rest(self, seconds: float | None) -> None:
        """Sleep so long, give or take a fifth, or until somebody suspects something."""
        if seconds is None:
            await self._suspected.wait()
            return
        with anyio.move_on_after(seconds * (0.8 + 0.4 * self._random())):
            if self.up:
                await self._suspected.wait()
            else:
                await anyio.sleep_forever()  # it is known to be down: it is asked at its own pace


class HealthChecker:
    """The watches over all backends."""

    def __init__(self, probed: Sequence[Probed], *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._watches = {each.name: Watch(each, clock, random) for each in probed}

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            for watch in self._watches.values():
                tasks.start_soon(watch.run)

    def watch(self, name: str) -> Watch:
        """The watch over a backend."""
        return self._watches[name]


class HttpProbe:
    """The cheapest question a plain server answers: its list of models, or its health; only the head is read.

    `proxied`: it stands outside the house, where a proxy may have to be asked.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        headers: Sequence[tuple[str, str]],
        *,
        connect_s: float,
        proxied: bool,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._endpoint = endpoint
        self._request = WireRequest(method="GET", path=path, headers=(("User-Agent", "hostler"), *headers))
        self._timeouts = Timeouts(connect_s=connect_s, first_byte_s=answer_s)
        self._transport = _clouds() if proxied else LanTransport(Pooling(max_idle=0))

    async def __call__(self) -> bool:
        """Whether somebody answers. A refused key is an answer; what a broken proxy says in its place is none."""
        return await self.look() == "answers"

    async def look(self) -> Sign:
        """As a call, but it tells whoever takes the connection and says nothing from whoever is not there."""
        try:
            async with self._transport.send(self._request, self._endpoint, self._timeouts) as answer:
                return "answers" if answer.head.status < 500 or answer.head.status == 503 else "nobody"
        except BackendTimeout:
            return "silent"
        except (GatewayError, OSError, ValueError):
            return "nobody"

    async def aclose(self) -> None:
        """Close what is open."""
        await self._transport.aclose()


def _clouds() -> Transport:
    from hostler.gateway.backends.httpx_transport import (
        CloudTransport,  # takes a while to load, and not everybody has clouds
    )

    return CloudTransport()


logger = logging.getLogger(__name__)

#: Whoever has heard nothing for so long wants to know whether anybody is there, in seconds.
SILENCE_S = 2.0
#: So long that question may take, in seconds. It costs an idle server a millisecond and a busy one hardly more.
PULSE_ANSWER_S = 3.0

#: Whether anybody is at the place: an engine's address, or `None` for the backend's own.
Alive = Callable[[EngineAddress | None], Awaitable[bool]]
#: Nobody does: every request there ends, as one whose connection was lost.
Cut = Callable[[EngineAddress | None], None]


class StallDetector:
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
        self._here: set[Attempt] = set()
        self._some = anyio.Event()

    @property
    def busy(self) -> bool:
        """Whether it has so many requests that it may be silent beside them."""
        return len(self._here) > self._beside

    def enter(self, attempt: Attempt) -> None:
        """The attempt is made there, or will be as soon as its model is loaded."""
        self._here.add(attempt)
        if not self._some.is_set():
            self._some.set()

    def leave(self, attempt: Attempt) -> None:
        """The attempt has ended."""
        self._here.discard(attempt)

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
        self, address: EngineAddress | None, before: dict[Attempt, tuple[EngineAddress | None, int]]
    ) -> None:
        if await self._alive(address) or address not in self._silent(before):
            return
        logger.warning("%s: nobody is there any more; its requests go on elsewhere", self._name)
        self._cut(address)

    def _heard(self) -> dict[Attempt, tuple[EngineAddress | None, int]]:
        """Who is where, and how much each has heard."""
        return {
            attempt: (attempt.address, attempt.segments)
            for attempt in self._here
            if attempt.address is not None or not self._needs_address
        }

    def _silent(self, before: dict[Attempt, tuple[EngineAddress | None, int]]) -> list[EngineAddress | None]:
        """The places where somebody has waited since then, and nobody has heard anything."""
        waited, spoken = set[EngineAddress | None](), set[EngineAddress | None]()
        for attempt, now in self._heard().items():
            then = before.get(attempt)
            if then == now:
                waited.add(now[0])
            elif then is not None and then[0] == now[0]:
                spoken.add(now[0])
        return [address for address in waited if address not in spoken]
