"""A circuit breaker that opens in one process opens in all of them."""

from __future__ import annotations

import pytest

from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.hop import Hop
from hostler.gateway.events import BreakerChanged
from hostler.gateway.workers.breaker_hints import breaker_hint, follow_breaker
from hostler.gateway.workers.frames import BreakerHint


def process() -> dict[str, Hop]:
    return {"cloud": Hop(name="cloud", breakers=CircuitBreakers(BreakerRules(), lambda: 0.0))}


@pytest.mark.parametrize("model", [None, "m"])
def test_it_opens_for_as_long_and_closes_again(model: str | None) -> None:
    here, there = process(), process()
    here["cloud"].breakers.follow(model, "open", 0.0, 8.0)
    event = BreakerChanged(backend="cloud", model=model, state="open", previous="closed")
    hint = breaker_hint(here, event, 2.0)
    assert hint == BreakerHint("cloud", model, "open", 6.0)
    follow_breaker(there, hint, 100.0)
    assert there["cloud"].breakers.retry_in("m", 100.0) == 6.0
    closed = BreakerChanged(backend="cloud", model=model, state="closed", previous="half_open")
    follow_breaker(there, breaker_hint(here, closed, 3.0), 101.0)
    assert there["cloud"].breakers.allows("m", 101.0)


def test_backends_that_this_process_does_not_have_are_ignored() -> None:
    follow_breaker(process(), BreakerHint("other", None, "open", 1.0), 0.0)
