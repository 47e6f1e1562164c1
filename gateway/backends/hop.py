"""A backend's place in the chain: its circuit breakers, how it is watched and woken, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
import msgspec

from hostler.adapters.errors import BackendUnavailable, GatewayError
from hostler.gateway.backend_settings import PriceSettings
from hostler.gateway.backends.circuit_breaker import BreakerState, CircuitBreakers
from hostler.gateway.backends.cost import SpendingTracker
from hostler.gateway.backends.rate_limiter import RateLimiter
from hostler.gateway.backends.stall_detector import StallDetector
from hostler.gateway.backends.wake_on_lan import StillAsleep, WakeOnLan

#: How often it is checked whether a hop is back, in seconds.
_BACK_TICK_S = 0.05


def _always() -> bool:
    return True


def _never() -> bool:
    return False


def _nothing() -> None:
    return None


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One backend of the chain. Costs of hops that are not `local` are tracked in `spending`.

    `supervised`: a supervisor runs its engines, so that their errors are explained to clients. `reachable` returns whether it is
    reachable as far as the background knows, `returning` whether it is about to be, `draining` whether it is out of service for
    maintenance; `check_now` has the background check at once.
    """

    name: str
    breakers: CircuitBreakers
    local: bool = True
    supervised: bool = False
    reachable: Callable[[], bool] = _always
    returning: Callable[[], bool] = _never
    draining: Callable[[], bool] = _never
    check_now: Callable[[], None] = _nothing
    stall_detector: StallDetector | None = None
    wake_on_lan: WakeOnLan | None = None
    spending: SpendingTracker | None = None
    prices: Mapping[str, PriceSettings] = {}
    rates: RateLimiter | None = None

    async def back(self, seconds: float) -> bool:
        """Wait until it is reachable and in service, at most `seconds`."""
        with anyio.move_on_after(max(0.0, seconds)):
            while not self.in_service:  # noqa: ASYNC110 - rare, and what is asked are callables
                await anyio.sleep(_BACK_TICK_S)
        return self.in_service

    @property
    def in_service(self) -> bool:
        """Whether it takes requests, as far as is known."""
        return self.reachable() and not self.draining()

    def lost(self) -> None:
        """An attempt could not reach it: check it at once. A machine that can be woken is asleep."""
        if self.wake_on_lan is not None and not self.supervised:
            self.wake_on_lan.set_reachable(False)
        self.check_now()

    def can_wake(self, error: GatewayError) -> bool:
        """Whether the next attempt wakes the machine, which was awake as far as was known when this one failed."""
        never_connected = isinstance(error, BackendUnavailable) and not isinstance(error, StillAsleep)
        if self.wake_on_lan is None or not never_connected:
            return False
        return not self.supervised or not self.reachable()

    def price(self, model: str, name_there: str) -> PriceSettings | None:
        """The configured price of a model here, if there is one."""
        return self.prices.get(name_there) or self.prices.get(model) or self.prices.get("*")


class RouteHop(msgspec.Struct, frozen=True, kw_only=True):
    """A hop of the route dry run. `reason` is why a request would not try it now, `words` the same as text.

    `changes` is what the settings change in a request for it, as the lines of a diff (`+ `, `- `). `reasons` are why a host
    stands at this place among others.
    """

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
    changes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
