"""Background probes: one at a time, at once when something is suspected, and what requests are spared by them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import pytest
from fakes.openrouter import open_router

from hostler.gateway.backends.base import Endpoint
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.health_checks import (
    CheckedBackend,
    CheckResult,
    HealthCheck,
    HealthChecker,
    HttpCheck,
    responds,
)

pytestmark = pytest.mark.anyio


class Backend:
    """Something to probe: it answers when told to, and counts."""

    def __init__(self) -> None:
        self.breakers = CircuitBreakers(BreakerRules(jitter=0.0, open_s=600.0), lambda: 0.0)
        self.answers = True
        self.probes = 0
        self.together = 0
        self.most_together = 0
        self.probed = anyio.Event()

    async def ask(self) -> bool:
        self.probes += 1
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await anyio.lowlevel.checkpoint()
        self.together -= 1
        self.probed.set()
        return self.answers

    async def asked(self, times: int) -> None:
        with anyio.fail_after(5):
            while self.probes < times:
                self.probed = anyio.Event()
                await self.probed.wait()
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def watching(
    backend: Backend, *, every_s: float | None = None, down_every_s: float | None = 0.005
) -> AsyncIterator[HealthCheck]:
    probed = CheckedBackend(
        name="b", breakers=backend.breakers, check=backend.ask, takes_s=60.0, every_s=every_s, down_every_s=down_every_s
    )
    prober = HealthChecker([probed], clock=time.monotonic, random=lambda: 0.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prober.run)
        yield prober.of("b")
        tasks.cancel_scope.cancel()


def usable(backend: Backend) -> bool:
    return backend.breakers.allows("m", time.monotonic())


async def test_checks_periodically_while_the_backend_responds() -> None:
    backend = Backend()
    async with watching(backend, every_s=0.01):
        await backend.asked(3)
    assert usable(backend)


async def test_without_a_period_a_backend_is_checked_only_on_request() -> None:
    backend = Backend()
    async with watching(backend):
        await anyio.sleep(0.05)
    assert backend.probes == 0


async def test_a_backend_to_be_checked_gets_no_requests_until_it_responds() -> None:
    backend = Backend()
    async with watching(backend, every_s=3600) as watch:
        await anyio.lowlevel.checkpoint()
        watch.check_now()
        assert not usable(backend)
        await backend.asked(1)
        assert usable(backend)


async def test_many_requests_for_a_check_are_one_check() -> None:
    backend = Backend()
    async with watching(backend) as watch:
        await anyio.lowlevel.checkpoint()
        for _ in range(100):
            watch.check_now()
        await backend.asked(1)
        await anyio.sleep(0.02)
    assert backend.probes == 1
    assert backend.most_together == 1


async def test_a_dead_backend_stays_open_and_is_used_again_after_one_response() -> None:
    backend = Backend()
    backend.answers = False
    async with watching(backend, every_s=3600) as watch:
        await anyio.lowlevel.checkpoint()
        watch.check_now()
        await backend.asked(5)
        assert not usable(backend)
        assert backend.breakers.state("m", time.monotonic()) == "open"
        watch.check_now()
        backend.answers = True
        await backend.asked(backend.probes + 1)
        assert usable(backend)
        assert backend.breakers.state("m", time.monotonic()) == "closed"


async def test_a_backend_checked_on_request_is_checked_until_it_responds() -> None:
    backend = Backend()
    backend.answers = False
    async with watching(backend) as watch:
        await anyio.lowlevel.checkpoint()
        watch.check_now()
        await backend.asked(3)
        assert not usable(backend)
        backend.answers = True
        await backend.asked(backend.probes + 1)
        assert usable(backend)
        probes = backend.probes
        await anyio.sleep(0.05)
        assert backend.probes == probes


async def test_one_check_is_enough_where_something_else_reports_the_return() -> None:
    backend = Backend()
    backend.answers = False
    async with watching(backend, down_every_s=None) as watch:
        await anyio.lowlevel.checkpoint()
        watch.check_now()
        await backend.asked(1)
        await anyio.sleep(0.05)
    assert backend.probes == 1


@pytest.mark.parametrize(
    ("status", "answers"), [(200, True), (401, True), (404, True), (503, True), (500, False), (502, False)]
)
async def test_any_response_counts_but_that_of_a_broken_proxy(status: int, answers: bool) -> None:
    async with open_router("b") as router:
        router.probe_status = status
        probe = probe_of(router.url)
        assert await probe() is answers
        assert router.probes == ["/api/v1/models"]
        await probe.aclose()


async def test_an_unreachable_backend_fails_the_check() -> None:
    async with open_router("b") as router:
        await router.stop()
        probe = probe_of(router.url)
        assert not await probe()
        await probe.aclose()


@pytest.mark.parametrize(
    ("signs", "busy", "there"),
    [
        (["responds"], False, True),
        (["silent", "responds"], False, True),
        (["unreachable", "responds"], True, True),
        (["silent", "silent"], False, False),
        (["silent"], True, True),  # its threads all have work, and its kernel takes the connection
        (["unreachable", "unreachable"], True, False),
    ],
)
async def test_a_busy_server_need_only_accept_connections(signs: list[CheckResult], busy: bool, there: bool) -> None:
    left = iter(signs)

    async def look() -> CheckResult:
        return next(left)

    assert await responds(look, busy=busy, tries=2) is there
    assert not list(left)


async def test_a_remote_backend_is_checked_more_often_before_it_counts_as_gone() -> None:
    left: list[CheckResult] = ["silent", "silent", "responds"]

    async def look() -> CheckResult:
        return left.pop(0)

    assert await responds(look, busy=False, tries=5)
    assert not left


async def test_a_silent_server_is_distinguished_from_an_unreachable_one() -> None:
    async with open_router("r") as router:
        url = urlsplit(router.url)
        endpoint = Endpoint(host=url.hostname or "", port=url.port or 0, name="r")
        probe = HttpCheck(endpoint, "/health", (), connect_s=1.0, proxied=False, timeout_s=0.05)
        router.block()
        assert await probe.result() == "silent"
        assert not await probe()
        router.resume()
        await router.stop()
        assert await probe.result() == "unreachable"
        await probe.aclose()


def probe_of(url: str) -> HttpCheck:
    endpoint = Endpoint(host="127.0.0.1", port=int(url.split(":")[2].split("/")[0]), name="b", base_path="/api")
    return HttpCheck(endpoint, "/v1/models", (), connect_s=1.0, proxied=False)
