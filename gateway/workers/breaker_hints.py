"""Circuit breakers over all processes: one that has opened or closed in one of them does so in all."""

from __future__ import annotations

from collections.abc import Mapping

from hostler.gateway.backends.hop import Hop
from hostler.gateway.events import BreakerChanged
from hostler.gateway.workers.frames import BreakerHint


def breaker_hint(hops: Mapping[str, Hop], event: BreakerChanged, now: float) -> BreakerHint:
    """What other processes should know of a breaker."""
    breakers = hops[event.backend].breakers
    breaker = breakers.host if event.model is None else breakers.models.get(event.model)
    seconds = 0.0 if breaker is None else breaker.retry_in(now)
    return BreakerHint(event.backend, event.model, "open" if event.state == "open" else "closed", seconds)


def follow_breaker(hops: Mapping[str, Hop], hint: BreakerHint, now: float) -> None:
    """Do with a breaker what another process has done."""
    if (hop := hops.get(hint.backend)) is not None:
        hop.breakers.follow(hint.model, hint.state, now, hint.seconds)
