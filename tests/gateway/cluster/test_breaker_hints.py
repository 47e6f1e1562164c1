"""A circuit that opens at one gateway makes the next call of the others a trial."""

from __future__ import annotations

import time
from functools import partial

import pytest
from fakes.cluster_members import ClusterMember, members_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import until

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.backends.circuit_breaker import BreakerRules, BreakerState, CircuitBreakers
from hostler.gateway.backends.hop import Hop
from hostler.gateway.cluster.breaker_hints import BreakerHints
from hostler.gateway.events import BreakerChanged

pytestmark = [pytest.mark.anyio, needs_redis]


class HintedGateway(ClusterMember):
    """With two backends, whose URLs name them everywhere."""

    def __init__(self, url: str, name: str, urls: dict[str, str], *, ahead_s: float = 0.0) -> None:
        super().__init__(url, name)
        self.changes: list[tuple[str, BreakerState]] = []
        self.hops = {
            backend: Hop(
                name=backend,
                breakers=CircuitBreakers(BreakerRules(), lambda: 0.0, on_change=partial(self._on_change, backend)),
            )
            for backend in urls
        }
        wall = lambda: time.time() + ahead_s  # noqa: E731
        entries = {name: BackendSettings(kind="openai", url=url) for name, url in urls.items()}
        self._hints = BreakerHints(self.announcements, self.hops, entries, clock=time.monotonic, wall=wall)

    def _on_change(self, backend: str, model: str | None, before: BreakerState, state: BreakerState) -> None:
        self.changes.append((backend, state))
        self._hints.on_event(BreakerChanged(backend=backend, model=model, state=state, previous=before))

    def opens(self, backend: str) -> None:
        self.hops[backend].breakers.host.trip(time.monotonic(), 30.0)

    def state(self, backend: str) -> str:
        return self.hops[backend].breakers.state("m", time.monotonic())


async def test_a_hint_makes_the_next_call_a_trial_and_only_that_decides(server: RedisServer) -> None:
    first = HintedGateway(server.url, "a", {"cloud": "https://a.example", "pc": "http://pc"})
    second = HintedGateway(server.url, "b", {"fallback": "https://a.example", "pc": "http://other"})
    async with members_running(first, second):
        first.opens("pc")
        first.opens("cloud")
        await until(lambda: second.changes)
        assert second.state("pc") == "closed"
        assert second.state("fallback") == "half_open"
        breakers, now = second.hops["fallback"].breakers, time.monotonic()
        for _ in range(BreakerRules().successes):
            trial = breakers.acquire("m", now)
            assert trial is not None
            assert breakers.acquire("m", now) is None
            breakers.first_token(trial, now)
        assert breakers.state("m", now) == "closed"
        assert first.state("cloud") == "open"


async def test_following_a_hint_is_no_news(server: RedisServer) -> None:
    urls = {"cloud": "https://a.example"}
    gateways = [HintedGateway(server.url, name, urls) for name in "abc"]
    async with members_running(*gateways):
        gateways[0].opens("cloud")
        await until(lambda: all(each.changes for each in gateways))
        assert [each.announcements.sent for each in gateways] == [1, 0, 0]


async def test_a_hint_that_arrives_too_late_is_ignored(server: RedisServer) -> None:
    urls = {"cloud": "https://a.example", "pc": "http://pc"}
    first = HintedGateway(server.url, "a", urls)
    late = HintedGateway(server.url, "b", urls, ahead_s=60.0)
    third = HintedGateway(server.url, "c", urls)
    async with members_running(first, late, third):
        first.opens("cloud")
        await until(lambda: third.changes)
        third.hops["pc"].breakers.host.trip(time.monotonic(), 120.0)
        await until(lambda: late.changes)
        assert late.changes == [("pc", "open")]
