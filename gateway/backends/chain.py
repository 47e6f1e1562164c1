"""The backends as hops: what is thought of each, who watches it, how it is woken, and what it may cost."""

from __future__ import annotations

import math
import random as chance
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import msgspec

from hostler.gateway.backends.base import Endpoint
from hostler.gateway.backends.circuit_breaker import BreakerRules, BreakerState, CircuitBreakers
from hostler.gateway.backends.cost import Spending, default_file
from hostler.gateway.backends.failure_policy import WORDS, Outcome, Skip
from hostler.gateway.backends.health_checks import (
    ANSWER_S,
    PULSE_ANSWER_S,
    Alive,
    Ask,
    HealthChecker,
    HttpProbe,
    Probed,
    Sign,
    StallDetector,
)
from hostler.gateway.backends.wake_on_lan import Waker
from hostler.gateway.config import BackendSettings, PriceSettings, Settings
from hostler.gateway.events import BreakerChanged, Bus, Event, HostChanged
from hostler.supervisor.contract import EngineAddress, Supervisor


def _always() -> bool:
    return True


def _nothing() -> None:
    return None


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One backend. `local`: what is sent there stays in the house; else `spending` counts what it costs.

    `supervised`: engines of ours answer, so that errors are ours to explain. `reachable` tells whether it is there as
    far as the background knows; `suspect` asks the background to look at once; `pulse` watches over the requests there.
    """

    name: str
    standing: CircuitBreakers
    local: bool = True
    supervised: bool = False
    reachable: Callable[[], bool] = _always
    suspect: Callable[[], None] = _nothing
    pulse: StallDetector | None = None
    waker: Waker | None = None
    spending: Spending | None = None
    prices: Mapping[str, PriceSettings] = {}

    def price(self, model: str, name_there: str) -> PriceSettings | None:
        """What a model costs here, if the configuration says so."""
        return self.prices.get(name_there) or self.prices.get(model) or self.prices.get("*")


#: What a server of each kind is asked for a sign of life.
_PROBES = {"openai": "/v1/models", "llamacpp": "/health", "ollama": "/api/version", "anthropic": "/v1/models"}
#: Clouds that are down are asked so many times as rarely as machines in the house.
_CLOUD_PATIENCE = 3.0
#: Beside how many requests servers in the house surely answer questions. Each request keeps a thread of llama-server's
#: until it has been answered, and it may have no more than three: where all are taken, a question waits like everybody
#: else. Of other kinds nobody knows: silence says nothing of them.
_ANSWER_BESIDE: Mapping[str, float] = {"llamacpp": 2, "ollama": math.inf}
#: So often a server outside the house is asked before its requests are taken for lost.
_LOOKS_OUTSIDE = 5


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a plain backend listens, and what every request there says."""

    endpoint: Endpoint
    headers: tuple[tuple[str, str], ...] = ()


class RouteHop(msgspec.Struct, frozen=True, kw_only=True):
    """A hop as it stands now. `reason` is why it would not be asked, `words` the same for people."""

    backend: str
    name_there: str
    context: int
    local: bool
    supervised: bool
    reachable: bool
    state: BreakerState
    retry_in_s: float
    reason: str | None
    words: str


async def _answers() -> bool:
    return True


class Chain:
    """All backends as hops. `run` watches them until cancelled; `aclose` lets go of connections.

    `reachable` tells whether a supervisor's heartbeat is there; `cut` ends every request at an address of a backend.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        supervisors: Mapping[str, Supervisor],
        addresses: Mapping[str, Address],
        reachable: Callable[[str], bool],
        cut: Callable[[Endpoint], None],
        bus: Bus,
        clock: Callable[[], float],
        random: Callable[[], float] = chance.random,
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self._random = random
        self._cut = cut
        self._pulses: list[StallDetector] = []
        limits = settings.gateway.spending
        file = Path(limits.file).expanduser() if limits.file else default_file()
        self.spending = Spending(file, limits.daily_limit, time.time)
        self._probes: list[HttpProbe] = []
        standings = {name: self._standing(name) for name in (*supervisors, *addresses)}
        watched = [self._supervised(name, standings[name]) for name in supervisors]
        watched += [self._plain(name, each, standings[name]) for name, each in addresses.items()]
        self._prober = HealthChecker(watched, clock=clock, random=random)
        self.hops: dict[str, Hop] = {}
        for name in supervisors:
            entry = settings.backends.get(name)
            wake = entry.wake if entry is not None else None
            self.hops[name] = Hop(
                name=name,
                standing=standings[name],
                local=entry is None or entry.in_the_house,
                supervised=True,
                reachable=partial(reachable, name),
                suspect=self._prober.watch(name).suspect,
                pulse=self._engines_pulse(name, standings[name]) if entry is not None else None,
                waker=None if wake is None else Waker(name, wake, clock),
                spending=self.spending,
            )
        for name, address in addresses.items():
            watch = self._prober.watch(name)
            self.hops[name] = Hop(
                name=name,
                standing=standings[name],
                local=settings.backends[name].in_the_house,
                reachable=partial(getattr, watch, "up"),
                suspect=watch.suspect,
                pulse=self._servers_pulse(name, address, standings[name]),
                spending=self.spending,
                prices=settings.backends[name].prices,
            )
        bus.listen(self._hear)

    async def run(self) -> None:
        """Watch the backends until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._prober.run)
            for pulse in self._pulses:
                tasks.start_soon(pulse.run)

    async def aclose(self) -> None:
        """Close the connections that watching opened."""
        for probe in self._probes:
            await probe.aclose()

    def view(self, name: str, name_there: str, context: int, *, local_only: bool) -> RouteHop:
        """How a request would find this hop now."""
        hop, now = self.hops[name], self._clock()
        reason: Skip | Outcome | None = None
        if local_only and not hop.local:
            reason = "non_local"
        elif not hop.local and self.spending.reached:
            reason = "budget_exhausted"
        elif not hop.standing.allows(name_there, now):
            reason = "circuit_open"
        elif hop.supervised and not hop.reachable() and hop.waker is None:
            reason = "unreachable"
        return RouteHop(
            backend=name,
            name_there=name_there,
            context=context,
            local=hop.local,
            supervised=hop.supervised,
            reachable=hop.reachable(),
            state=hop.standing.state(name_there, now),
            retry_in_s=round(hop.standing.retry_in(name_there, now), 3),
            reason=reason,
            words=WORDS[reason] if reason is not None else "",
        )

    def _hear(self, event: Event) -> None:
        """A supervisor's heartbeat came or went: its host is used again at once, and whoever waits for it goes on."""
        if not isinstance(event, HostChanged) or event.backend not in self.hops:
            return
        hop = self.hops[event.backend]
        if event.reachable:
            hop.standing.recovered()
        if hop.waker is not None:
            hop.waker.heard(event.reachable)

    def _standing(self, name: str) -> CircuitBreakers:
        rules = self._settings.breaker
        return CircuitBreakers(
            BreakerRules(failures=rules.failures, open_s=rules.open_s, max_open_s=rules.max_open_s),
            self._random,
            changed=partial(self._changed, name),
        )

    def _changed(self, name: str, model: str | None, before: BreakerState, state: BreakerState) -> None:
        self._bus.publish(BreakerChanged(backend=name, model=model, state=state, previous=before))

    def _supervised(self, name: str, standing: CircuitBreakers) -> Probed:
        """A supervisor's heartbeat tells of its return; but a machine that vanished is noticed by asking sooner."""
        backend = self._settings.backends.get(name)
        connect_s = self._settings.gateway.timeouts.connect_s
        ask: Ask = _answers
        if backend is not None:
            ask = HttpProbe(supervisors_endpoint(name, backend), "/healthz", (), connect_s=connect_s, proxied=False)
            self._probes.append(ask)
        # A machine that can be woken must be tried by a request now and then: that is what wakes it.
        sleeps = backend is None or backend.wake is not None
        down_every_s = None if sleeps else self._settings.gateway.probing.down_every_s
        return Probed(name=name, standing=standing, ask=ask, takes_s=2 * connect_s, down_every_s=down_every_s)

    def _plain(self, name: str, address: Address, standing: CircuitBreakers) -> Probed:
        backend, probing = self._settings.backends[name], self._settings.gateway.probing
        local, connect_s = backend.in_the_house, self._settings.gateway.timeouts.connect_s
        probe = HttpProbe(
            address.endpoint, _PROBES[backend.kind], address.headers, connect_s=connect_s, proxied=not local
        )
        self._probes.append(probe)

        async def ask() -> bool:
            return await lives(probe.look, busy=self._busy(name), looks=1)

        return Probed(
            name=name,
            standing=standing,
            ask=ask,
            takes_s=connect_s + ANSWER_S,
            every_s=probing.every_s if local else None,
            down_every_s=probing.down_every_s * (1.0 if local else _CLOUD_PATIENCE),
        )

    def _busy(self, name: str) -> bool:
        """Whether a server has more of our requests than it can answer beside: it may well be silent then."""
        hop = self.hops.get(name)
        return hop is not None and hop.pulse is not None and hop.pulse.busy

    def _engines_pulse(self, name: str, standing: CircuitBreakers) -> StallDetector:
        """A machine with a supervisor is given up when neither the engine nor the supervisor answers, twice."""
        backend = self._settings.backends[name]
        ask = self._probe(supervisors_endpoint(name, backend), "/healthz", ())

        async def alive(address: EngineAddress | None) -> bool:
            assert address is not None, "requests wait at engines"
            engine = Endpoint(host=address.host, port=address.port, name=name)
            for _again in range(2):
                if await _any_answers(ask, self._probe(engine, "/health", (), kept=False)):
                    return True
            return False

        def cut(address: EngineAddress | None) -> None:
            assert address is not None, "requests wait at engines"
            self._give_up(name, standing)
            self._cut(Endpoint(host=address.host, port=address.port, key=address.key, name=name))

        return self._pulse(name, alive, cut, needs_address=True)

    def _servers_pulse(self, name: str, address: Address, standing: CircuitBreakers) -> StallDetector | None:
        """A plain server is given up when it does not answer twice; its timeouts are for what merely takes long.
        What stands behind an address outside is less known, so it is asked more often.

        One that has more to do than it can answer beside, and still takes connections, is left to its timeouts, too.
        """
        backend = self._settings.backends[name]
        if backend.in_the_house and backend.kind not in _ANSWER_BESIDE:
            return None
        beside = _ANSWER_BESIDE[backend.kind] if backend.in_the_house else math.inf
        looks = 2 if backend.in_the_house else _LOOKS_OUTSIDE
        ask = self._probe(address.endpoint, _PROBES[backend.kind], address.headers, proxied=not backend.in_the_house)

        async def alive(_: EngineAddress | None) -> bool:
            return await lives(ask.look, busy=self._busy(name), looks=looks)

        def cut(_: EngineAddress | None) -> None:
            self._give_up(name, standing)
            self._cut(address.endpoint)

        return self._pulse(name, alive, cut, needs_address=False, beside=beside)

    def _pulse(
        self,
        name: str,
        alive: Alive,
        cut: Callable[[EngineAddress | None], None],
        *,
        needs_address: bool,
        beside: float = math.inf,
    ) -> StallDetector:
        pulse = StallDetector(name, alive=alive, cut=cut, needs_address=needs_address, beside=beside)
        self._pulses.append(pulse)
        return pulse

    def _give_up(self, name: str, standing: CircuitBreakers) -> None:
        """Nobody is there: no request tries it before the background has found somebody."""
        watch = self._prober.watch(name)
        standing.unanswered(self._clock(), self._settings.gateway.timeouts.connect_s + ANSWER_S, confirms=True)
        watch.suspect()

    def _probe(
        self,
        endpoint: Endpoint,
        path: str,
        headers: tuple[tuple[str, str], ...],
        *,
        proxied: bool = False,
        kept: bool = True,
    ) -> HttpProbe:
        connect_s = self._settings.gateway.timeouts.connect_s
        probe = HttpProbe(endpoint, path, headers, connect_s=connect_s, proxied=proxied, answer_s=PULSE_ANSWER_S)
        if kept:
            self._probes.append(probe)
        return probe


def supervisors_endpoint(name: str, backend: BackendSettings) -> Endpoint:
    """Where a supervisor listens."""
    url = urlsplit(backend.url)
    tls = url.scheme == "https"
    port = url.port or (443 if tls else 80)
    return Endpoint(host=url.hostname or "", port=port, name=name, tls=tls, base_path=url.path.rstrip("/"))


async def lives(look: Callable[[], Awaitable[Sign]], *, busy: bool, looks: int) -> bool:
    """Whether a server is there at one of so many looks. A busy one need not answer, only take connections."""
    signs = ("answers", "silent") if busy else ("answers",)
    for _ in range(looks):
        if await look() in signs:
            return True
    return False


async def _any_answers(*asks: HttpProbe) -> bool:
    """Whether one of them does; the others are not waited for. The last one is asked this once only."""
    answers = False
    try:
        async with anyio.create_task_group() as tasks:

            async def hear(ask: HttpProbe) -> None:
                nonlocal answers
                if await ask():
                    answers = True
                    tasks.cancel_scope.cancel()

            for ask in asks:
                tasks.start_soon(hear, ask)
    finally:
        with anyio.CancelScope(shield=True):
            await asks[-1].aclose()
    return answers
