"""The chain of backends as hops: each with its circuit breakers, health checks, stall detection, waking and costs."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from urllib.parse import urlsplit

import anyio

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.backends.circuit_breaker import BreakerRules, BreakerState, CircuitBreakers
from hostler.gateway.backends.cost import SpendingTracker, spending_file
from hostler.gateway.backends.failure_policy import DESCRIPTIONS, AttemptResult, SkipReason
from hostler.gateway.backends.health_checks import (
    CHECK_TIMEOUT_S,
    Check,
    CheckedBackend,
    HealthChecker,
    HttpCheck,
    any_responds,
    responds,
)
from hostler.gateway.backends.hop import Hop, RouteHop
from hostler.gateway.backends.rate_limiter import RateLimiter
from hostler.gateway.backends.stall_detector import IsAlive, StallDetector
from hostler.gateway.backends.transport import Backend, Endpoint, EndpointOptions, TlsOptions
from hostler.gateway.backends.wake_on_lan import WakeOnLan
from hostler.gateway.backends.watches import Watches
from hostler.gateway.events import BreakerChanged, Bus, Event, HostChanged
from hostler.gateway.settings import Settings
from hostler.supervisor.contract import EngineAddress

#: Remote backends that are down are checked less often than local ones, by this factor.
_REMOTE_FACTOR = 3.0
#: The number of requests up to which a local server certainly answers health checks. Each request keeps a thread of llama-server
#: busy until it is answered, and it may have no more than three: with all of them busy a check waits, too. About other
#: kinds nothing is known, so their silence means nothing.
_ANSWERS_BESIDE: Mapping[str, float] = {"llamacpp": 2, "ollama": math.inf}
#: Failed checks after which the requests at a remote backend count as lost, and at a local one.
_REMOTE_TRIES, _LOCAL_TRIES = 5, 2
#: The time for a stall detector's check, in seconds. It costs an idle server a millisecond and a busy one hardly more.
_STALL_TIMEOUT_S = 3.0


async def _responds_always() -> bool:
    return True


class Chain:
    """All backends as hops. `run` watches them until cancelled; `aclose` closes the connections of the checks.

    `entries` are their settings by name: those of the file by default. `backends` are the ones without a supervisor.
    `reachable` returns whether a supervisor's heartbeat is there, `returning` whether it will be soon, `draining`
    whether it is out of service; `drop_requests` ends every request at an endpoint, and `on_return` is called for a
    backend without a supervisor that responds again. `spending` counts costs, in the file of the settings by default.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        supervisors: Iterable[str],
        backends: Mapping[str, Backend],
        reachable: Callable[[str], bool],
        returning: Callable[[str], bool],
        draining: Callable[[str], bool] = lambda name: False,
        drop_requests: Callable[[Endpoint], None],
        on_return: Callable[[str], None],
        bus: Bus,
        clock: Callable[[], float],
        spending: SpendingTracker | None = None,
        entries: Mapping[str, BackendSettings] | None = None,
    ) -> None:
        self._settings = settings
        self._backends = settings.backends if entries is None else entries
        self._reachable, self._returning, self._draining = reachable, returning, draining
        self._bus = bus
        self._clock = clock
        self._drop_requests = drop_requests
        self._on_return = on_return
        self._connect_s = settings.gateway.timeouts.connect_s
        self._detectors = Watches()
        self._http_checks: dict[str, list[HttpCheck]] = defaultdict(list)
        self.spending = _spending(settings) if spending is None else spending
        self.hops: dict[str, Hop] = {}
        self._health = HealthChecker((), clock=clock, random=random.random)
        for name in supervisors:
            self.add_supervisor(name)
        for name, backend in backends.items():
            breakers = self._breakers(name)
            self._health.add(self._checked_server(backend, breakers))
            self.hops[name] = self._plain_hop(backend, breakers)
        bus.listen(self._on_event)

    def add_supervisor(self, name: str) -> None:
        """A hop for a host, of this machine or of another one, which `entries` has."""
        breakers = self._breakers(name)
        self._health.add(self._checked_supervisor(name, breakers))
        self.hops[name] = self._supervised_hop(
            name,
            breakers,
            partial(self._reachable, name),
            partial(self._returning, name),
            partial(self._draining, name),
        )

    async def remove(self, name: str) -> None:
        """Take a backend out of the chain, whose last request has ended."""
        del self.hops[name]
        self._health.remove(name)
        self._detectors.end(name)
        for check in self._http_checks.pop(name, ()):
            await check.aclose()

    async def run(self) -> None:
        """Watch the backends until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._health.run)
            tasks.start_soon(self._detectors.run)

    async def aclose(self) -> None:
        """Close the connections of the checks."""
        for checks in list(self._http_checks.values()):
            for check in checks:
                await check.aclose()

    @property
    def has_remote(self) -> bool:
        """Whether any hop is remote."""
        return any(not hop.local for hop in self.hops.values())

    def availability(self, name: str, name_there: str, context: int, *, local_only: bool) -> RouteHop:
        """Whether a request would try this hop now."""
        hop, now = self.hops[name], self._clock()
        reason: SkipReason | AttemptResult | None = None
        if local_only and not hop.local:
            reason = "non_local"
        elif not hop.local and self.spending.limit_reached:
            reason = "budget_exhausted"
        elif hop.draining():
            reason = "draining"
        elif hop.rates is not None and hop.rates.wait_s(now) > 0:
            reason = "rate_limited"
        elif not hop.breakers.allows(name_there, now):
            reason = "circuit_open"
        elif hop.supervised and not hop.reachable() and hop.wake_on_lan is None:
            reason = "unreachable"
        return RouteHop(
            backend=name,
            name_there=name_there,
            context=context,
            local=hop.local,
            supervised=hop.supervised,
            reachable=hop.reachable(),
            state=hop.breakers.state(name_there, now),
            retry_in_s=round(hop.breakers.retry_in(name_there, now), 3),
            reason=reason,
            words=DESCRIPTIONS[reason] if reason is not None else "",
        )

    def _on_event(self, event: Event) -> None:
        """A supervisor became reachable or unreachable: if reachable, its host is used again at once, and waiting requests
        continue."""
        if not isinstance(event, HostChanged) or event.backend not in self.hops:
            return
        hop = self.hops[event.backend]
        if event.reachable:
            hop.breakers.recovered()
        if hop.wake_on_lan is not None:
            hop.wake_on_lan.set_reachable(event.reachable)

    # Hops

    def _supervised_hop(
        self,
        name: str,
        breakers: CircuitBreakers,
        reachable: Callable[[], bool],
        returning: Callable[[], bool],
        draining: Callable[[], bool],
    ) -> Hop:
        settings = self._backends.get(name)
        wake = settings.wake if settings is not None else None
        return Hop(
            name=name,
            breakers=breakers,
            local=settings is None or settings.is_local,
            supervised=True,
            reachable=reachable,
            returning=returning,
            draining=draining,
            check_now=self._health.of(name).check_now,
            stall_detector=None if settings is None else self._engine_stall_detector(name, settings, breakers),
            wake_on_lan=None if wake is None else WakeOnLan(name, wake, self._clock),
            spending=self.spending,
            rates=None if settings is None else _rates(settings),
        )

    def _plain_hop(self, backend: Backend, breakers: CircuitBreakers) -> Hop:
        settings, health = self._backends[backend.name], self._health.of(backend.name)
        wake = None if settings.wake is None else WakeOnLan(backend.name, settings.wake, self._clock)
        return Hop(
            name=backend.name,
            breakers=breakers,
            local=settings.is_local,
            reachable=partial(getattr, health, "up") if wake is None else partial(getattr, wake, "awake"),
            check_now=health.check_now,
            stall_detector=self._server_stall_detector(backend, settings, breakers),
            wake_on_lan=wake,
            spending=self.spending,
            prices=settings.prices,
            rates=_rates(settings),
        )

    def _breakers(self, name: str) -> CircuitBreakers:
        rules = self._settings.breaker
        return CircuitBreakers(
            BreakerRules(failures=rules.failures, open_s=rules.open_s, max_open_s=rules.max_open_s),
            random.random,
            on_change=partial(self._on_breaker_change, name),
        )

    def _on_breaker_change(self, name: str, model: str | None, before: BreakerState, state: BreakerState) -> None:
        self._bus.publish(BreakerChanged(backend=name, model=model, state=state, previous=before))

    # Health checks

    def _checked_supervisor(self, name: str, breakers: CircuitBreakers) -> CheckedBackend:
        """A supervisor's heartbeat reports its return; a check only notices sooner that the machine has vanished."""
        settings = self._backends.get(name)
        check: Check = _responds_always
        if settings is not None:
            check = HttpCheck(
                supervisor_endpoint(name, settings), "/healthz", (), connect_s=self._connect_s, proxied=False
            )
            self._http_checks[name].append(check)
        # A machine that can be woken must be tried by a request now and then: that is what wakes it.
        sleeps = settings is None or settings.wake is not None
        down_every_s = None if sleeps else self._settings.gateway.probing.down_every_s
        return CheckedBackend(
            name=name, breakers=breakers, check=check, takes_s=2 * self._connect_s, down_every_s=down_every_s
        )

    def _checked_server(self, backend: Backend, breakers: CircuitBreakers) -> CheckedBackend:
        name, probing = backend.name, self._settings.gateway.probing
        local = self._backends[name].is_local
        http_check = self._http_check(backend, timeout_s=CHECK_TIMEOUT_S)

        async def check() -> bool:
            return await responds(http_check.result, busy=self._is_busy(name), tries=1)

        return CheckedBackend(
            name=name,
            breakers=breakers,
            check=check,
            takes_s=self._connect_s + CHECK_TIMEOUT_S,
            every_s=probing.every_s if local else None,
            down_every_s=probing.down_every_s * (1.0 if local else _REMOTE_FACTOR),
            # A machine that can be woken must be tried by a request: that is what wakes it.
            opens_circuit=self._backends[name].wake is None,
            on_result=partial(self._on_checked, name),
        )

    def _on_checked(self, name: str, responds: bool) -> None:
        """A backend without a supervisor was checked."""
        wake = self.hops[name].wake_on_lan
        if wake is not None:
            wake.set_reachable(responds)
        if responds:
            self._on_return(name)

    def _http_check(self, backend: Backend, *, timeout_s: float) -> HttpCheck:
        """A check of a backend without a supervisor."""
        settings = self._backends[backend.name]
        assert backend.endpoint is not None, "only supervised backends have no endpoint of their own"
        check = HttpCheck(
            backend.endpoint,
            backend.health_path,
            backend.headers,
            connect_s=self._connect_s,
            proxied=not settings.is_direct,
            timeout_s=timeout_s,
        )
        self._http_checks[backend.name].append(check)
        return check

    def _is_busy(self, name: str) -> bool:
        """Whether a server has so many requests in flight that it may not answer checks."""
        hop = self.hops.get(name)
        return hop is not None and hop.stall_detector is not None and hop.stall_detector.busy

    # Stall detection

    def _engine_stall_detector(self, name: str, settings: BackendSettings, breakers: CircuitBreakers) -> StallDetector:
        """A supervised machine counts as gone when neither the engine nor the supervisor responds, twice. While requests wait
        for a model there is no engine."""
        check = partial(HttpCheck, connect_s=self._connect_s, proxied=False, timeout_s=_STALL_TIMEOUT_S)
        supervisor = check(supervisor_endpoint(name, settings), "/healthz", ())
        self._http_checks[name].append(supervisor)

        async def is_alive(address: EngineAddress | None) -> bool:
            if address is None and not self.hops[name].reachable():
                return True  # that is known, and no news: the requests wait until the machine is awake
            for _ in range(_LOCAL_TRIES):
                if await (supervisor() if address is None else engine_responds(address)):
                    return True
            return False

        async def engine_responds(address: EngineAddress) -> bool:
            engine = check(Endpoint(host=address.host, port=address.port, name=name), "/health", ())
            try:
                return await any_responds(supervisor, engine)
            finally:
                with anyio.CancelScope(shield=True):
                    await engine.aclose()

        def drop(address: EngineAddress | None) -> None:
            self._give_up(name, breakers)
            if address is None:
                self._drop_requests(supervisor_endpoint(name, settings))
            else:
                self._drop_requests(Endpoint(host=address.host, port=address.port, key=address.key, name=name))

        return self._stall_detector(name, is_alive, drop)

    def _server_stall_detector(
        self, backend: Backend, settings: BackendSettings, breakers: CircuitBreakers
    ) -> StallDetector | None:
        """A plain server counts as gone when it fails all checks; its timeouts are for what merely takes long.

        A busy one that still accepts connections is left to its timeouts, too. What stands behind a remote address is
        less known, so it is checked more often.
        """
        if settings.is_local and settings.kind not in _ANSWERS_BESIDE:
            return None
        name, endpoint = backend.name, backend.endpoint
        assert endpoint is not None, "only supervised backends have no endpoint of their own"
        tries = _LOCAL_TRIES if settings.is_local else _REMOTE_TRIES
        check = self._http_check(backend, timeout_s=_STALL_TIMEOUT_S)

        async def is_alive(_: EngineAddress | None) -> bool:
            return await responds(check.result, busy=self._is_busy(name), tries=tries)

        def drop(_: EngineAddress | None) -> None:
            self._give_up(name, breakers)
            self._drop_requests(endpoint)

        max_requests = _ANSWERS_BESIDE[settings.kind] if settings.is_local else math.inf
        return self._stall_detector(name, is_alive, drop, max_requests=max_requests)

    def _stall_detector(
        self,
        name: str,
        is_alive: IsAlive,
        drop: Callable[[EngineAddress | None], None],
        *,
        max_requests: float = math.inf,
    ) -> StallDetector:
        detector = StallDetector(name, is_alive=is_alive, drop=drop, max_requests=max_requests)
        self._detectors.add(name, detector.run)
        return detector

    def _give_up(self, name: str, breakers: CircuitBreakers) -> None:
        """Open the circuit of a backend that is gone, until a health check passes."""
        breakers.check_failed(self._clock(), self._connect_s + CHECK_TIMEOUT_S, confirms=True)
        self._health.of(name).check_now()


def _spending(settings: Settings) -> SpendingTracker:
    limits = settings.gateway.spending
    return SpendingTracker(spending_file(limits), limits.daily_limit, time.time)


def supervisor_endpoint(name: str, settings: BackendSettings) -> Endpoint:
    """Where the supervisor of a backend listens, for health checks: they send no secret, so any certificate will do."""
    if settings.url.startswith("unix:"):
        return Endpoint(host=settings.url.removeprefix("unix:"), port=0, name=name)
    url = urlsplit(settings.url)
    tls = url.scheme == "https"
    port = url.port or (443 if tls else 80)
    options = EndpointOptions(tls=TlsOptions(insecure=True)) if tls else None
    base_path = url.path.rstrip("/")
    return Endpoint(host=url.hostname or "", port=port, name=name, tls=tls, base_path=base_path, options=options)


def _rates(settings: BackendSettings) -> RateLimiter | None:
    return None if settings.limits is None else RateLimiter(settings.limits)
