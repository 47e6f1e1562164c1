"""Background health checks, so that requests need not find out which backends are down.

One task and at most one check at a time for each backend. The results go to the backend's circuit breakers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import anyio
import msgspec

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendTimeout, GatewayError
from hostler.gateway.backends.circuit_breaker import CircuitBreakers
from hostler.gateway.backends.http_pool import PoolSettings
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.transport import Endpoint, Timeouts, Transport
from hostler.gateway.backends.watches import Watches

#: The time for a check, from its first byte to the head of the response, in seconds.
CHECK_TIMEOUT_S = 5.0

Check = Callable[[], Awaitable[bool]]
#: `silent` accepts connections and does not respond: it hangs, or all of its threads are busy.
CheckResult = Literal["responds", "silent", "unreachable"]


def _ignore(responds: bool) -> None:
    return None


class CheckedBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend to check. `check` returns whether it responds, within `takes_s`, and never raises.

    `on_result` is called after each check. Without `opens_circuit`, requests go there although a check failed.
    `every_s` `None`: checked only when an attempt failed to reach it. `down_every_s` `None`: then it is checked once,
    since something else reports its return.
    """

    name: str
    breakers: CircuitBreakers
    check: Check
    takes_s: float
    every_s: float | None = None
    down_every_s: float | None = None
    opens_circuit: bool = True
    on_result: Callable[[bool], None] = _ignore


class HealthCheck:
    """The checks of one backend, while `run` runs. `up` is the last result."""

    def __init__(self, backend: CheckedBackend, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._random = random
        self._requested = anyio.Event()
        self.up = True
        self.count = 0

    def check_now(self) -> None:
        """An attempt could not reach the backend: check it at once, and spare requests until the result is known."""
        if not self._requested.is_set():
            if self._backend.opens_circuit:
                self._backend.breakers.host.cool(self._clock() + self._backend.takes_s)
            self._requested.set()

    async def run(self) -> None:
        """Check again and again, until cancelled."""
        backend = self._backend
        if backend.every_s is not None:
            await self._sleep(min(1.0, backend.every_s))  # backends are not all checked at once
        while True:
            if backend.every_s is not None or not self.up or self._requested.is_set():
                await self._check()
            await self._sleep(backend.every_s if self.up else backend.down_every_s)

    async def _check(self) -> None:
        backend = self._backend
        self.count += 1
        requested = self._requested.is_set()
        responds = await backend.check()
        self._requested = anyio.Event()
        self.up = responds
        if responds:
            backend.breakers.recovered()
        elif backend.opens_circuit:
            # Until the result of the next check, with the jitter of `_sleep`.
            next_s = (backend.down_every_s or 0.0) * 1.2 + backend.takes_s
            backend.breakers.check_failed(self._clock(), next_s, confirms=requested)
        if not responds and backend.down_every_s is None:
            self.up = True
        backend.on_result(responds)

    async def _sleep(self, seconds: float | None) -> None:
        """Sleep for `seconds`, plus or minus a fifth, or until a check is requested; `None` waits for a request."""
        if seconds is None:
            await self._requested.wait()
            return
        with anyio.move_on_after(seconds * (0.8 + 0.4 * self._random())):
            if self.up:
                await self._requested.wait()
            else:
                await anyio.sleep_forever()  # known to be down: it is checked at its own pace


class HealthChecker:
    """The health checks of all backends. Backends may be added and removed while it runs."""

    def __init__(
        self, backends: Sequence[CheckedBackend], *, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._random = random
        self._checks: dict[str, HealthCheck] = {}
        self._watches = Watches()
        for backend in backends:
            self.add(backend)

    async def run(self) -> None:
        """Check until cancelled."""
        await self._watches.run()

    def add(self, backend: CheckedBackend) -> None:
        """Check this backend as well."""
        check = self._checks[backend.name] = HealthCheck(backend, self._clock, self._random)
        self._watches.add(backend.name, check.run)

    def remove(self, name: str) -> None:
        """Check this backend no more."""
        self._watches.end(name)
        del self._checks[name]

    def of(self, name: str) -> HealthCheck:
        """The health check of a backend."""
        return self._checks[name]


class HttpCheck:
    """The cheapest request that a server answers: its list of models, or its health. Only the head is read.

    `proxied`: the backend is not local, so that a proxy may stand between.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        headers: Sequence[tuple[str, str]],
        *,
        connect_s: float,
        proxied: bool,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> None:
        self._endpoint = endpoint
        self._request = WireRequest(method="GET", path=path, headers=(("User-Agent", "hostler"), *headers))
        self._timeouts = Timeouts(connect_s=connect_s, first_byte_s=timeout_s)
        self._transport = _httpx_transport() if proxied else LanTransport(PoolSettings(max_idle=0))

    async def __call__(self) -> bool:
        """Whether the backend responds. A rejected key is a response; a proxy's 502 is none."""
        return await self.result() == "responds"

    async def result(self) -> CheckResult:
        """Like a call, but distinguishes a backend that accepts the connection and is silent from one that is
        unreachable."""
        try:
            async with self._transport.send(self._request, self._endpoint, self._timeouts) as answer:
                return "responds" if answer.head.status < 500 or answer.head.status == 503 else "unreachable"
        except BackendTimeout:
            return "silent"
        except (GatewayError, OSError, ValueError):
            return "unreachable"

    async def aclose(self) -> None:
        """Close its connections."""
        await self._transport.aclose()


async def responds(check: Callable[[], Awaitable[CheckResult]], *, busy: bool, tries: int) -> bool:
    """Whether a server responds to one of several checks. A busy one need not respond, only accept connections."""
    good = ("responds", "silent") if busy else ("responds",)
    for _ in range(tries):
        if await check() in good:
            return True
    return False


async def any_responds(*checks: HttpCheck) -> bool:
    """Whether one of the checks succeeds; the others are not waited for."""
    found = False
    async with anyio.create_task_group() as tasks:

        async def run(check: HttpCheck) -> None:
            nonlocal found
            if await check():
                found = True
                tasks.cancel_scope.cancel()

        for check in checks:
            tasks.start_soon(run, check)
    return found


def _httpx_transport() -> Transport:
    # Loading httpx takes a while, and not every gateway has backends that are not local.
    from hostler.gateway.backends.httpx_transport import HttpxTransport

    return HttpxTransport()
