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
from hostler.gateway.backends.chain import lives
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.health_checks import HealthChecker, HttpProbe, Probed, Sign, Watch

pytestmark = pytest.mark.anyio


class Backend:
    """Something to probe: it answers when told to, and counts."""

    def __init__(self) -> None:
        self.standing = CircuitBreakers(BreakerRules(jitter=0.0, open_s=600.0), lambda: 0.0)
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
) -> AsyncIterator[Watch]:
    probed = Probed(
        name="b", standing=backend.standing, ask=backend.ask, takes_s=60.0, every_s=every_s, down_every_s=down_every_s
    )
    prober = HealthChecker([probed], clock=time.monotonic, random=lambda: 0.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prober.run)
        yield prober.watch("b")
        tasks.cancel_scope.cancel()


def usable(backend: Backend) -> bool:
    return backend.standing.allows("m", time.monotonic())


async def test_asks_again_and_again_as_long_as_all_is_well() -> None:
    backend = Backend()
    async with watching(backend, every_s=0.01):
        await backend.asked(3)
    assert usable(backend)


async def test_a_backend_that_nobody_suspects_is_left_in_peace_if_told_so() -> None:
    backend = Backend()
    async with watching(backend):
        await anyio.sleep(0.05)
    assert backend.probes == 0


async def test_a_suspected_backend_is_closed_to_requests_until_it_has_answered() -> None:
    backend = Backend()
    async with watching(backend, every_s=3600) as watch:
        await anyio.lowlevel.checkpoint()
        watch.suspect()
        assert not usable(backend)
        await backend.asked(1)
        assert usable(backend)


async def test_many_suspicions_are_one_probe() -> None:
    backend = Backend()
    async with watching(backend) as watch:
        await anyio.lowlevel.checkpoint()
        for _ in range(100):
            watch.suspect()
        await backend.asked(1)
        await anyio.sleep(0.02)
    assert backend.probes == 1
    assert backend.most_together == 1


async def test_a_dead_backend_stays_closed_and_is_used_again_after_one_answer() -> None:
    backend = Backend()
    backend.answers = False
    async with watching(backend, every_s=3600) as watch:
        await anyio.lowlevel.checkpoint()
        watch.suspect()
        await backend.asked(5)
        assert not usable(backend)
        assert backend.standing.state("m", time.monotonic()) == "open"
        watch.suspect()
        backend.answers = True
        await backend.asked(backend.probes + 1)
        assert usable(backend)
        assert backend.standing.state("m", time.monotonic()) == "closed"


async def test_one_that_is_asked_only_when_suspected_is_asked_until_it_is_back() -> None:
    backend = Backend()
    backend.answers = False
    async with watching(backend) as watch:
        await anyio.lowlevel.checkpoint()
        watch.suspect()
        await backend.asked(3)
        assert not usable(backend)
        backend.answers = True
        await backend.asked(backend.probes + 1)
        assert usable(backend)
        probes = backend.probes
        await anyio.sleep(0.05)
        assert backend.probes == probes


async def test_where_something_else_tells_of_the_return_one_probe_is_enough() -> None:
    backend = Backend()
    backend.answers = False
    async with watching(backend, down_every_s=None) as watch:
        await anyio.lowlevel.checkpoint()
        watch.suspect()
        await backend.asked(1)
        await anyio.sleep(0.05)
    assert backend.probes == 1


@pytest.mark.parametrize(
    ("status", "answers"), [(200, True), (401, True), (404, True), (503, True), (500, False), (502, False)]
)
async def test_an_answer_of_any_kind_is_a_sign_of_life_but_a_broken_proxy_is_none(status: int, answers: bool) -> None:
    async with open_router("b") as router:
        router.probe_status = status
        probe = probe_of(router.url)
        assert await probe() is answers
        assert router.probes == ["/api/v1/models"]
        await probe.aclose()


async def test_nobody_there_is_no_sign_of_life() -> None:
    async with open_router("b") as router:
        await router.stop()
        probe = probe_of(router.url)
        assert not await probe()
        await probe.aclose()


@pytest.mark.parametrize(
    ("signs", "busy", "there"),
    [
        (["answers"], False, True),
        (["silent", "answers"], False, True),
        (["nobody", "answers"], True, True),
        (["silent", "silent"], False, False),
        (["silent"], True, True),  # its threads all have work, and its kernel takes the connection
        (["nobody", "nobody"], True, False),
    ],
)
async def test_a_busy_server_need_not_answer_only_take_connections(signs: list[Sign], busy: bool, there: bool) -> None:
    left = iter(signs)

    async def look() -> Sign:
        return next(left)

    assert await lives(look, busy=busy, looks=2) is there
    assert not list(left)


async def test_what_is_outside_is_asked_more_often_before_it_is_given_up() -> None:
    left: list[Sign] = ["silent", "silent", "answers"]

    async def look() -> Sign:
        return left.pop(0)

    assert await lives(look, busy=False, looks=5)
    assert not left


async def test_whoever_takes_a_connection_and_is_silent_is_told_from_whoever_is_not_there() -> None:
    async with open_router("r") as router:
        url = urlsplit(router.url)
        endpoint = Endpoint(host=url.hostname or "", port=url.port or 0, name="r")
        probe = HttpProbe(endpoint, "/health", (), connect_s=1.0, proxied=False, answer_s=0.05)
        router.block()
        assert await probe.look() == "silent"
        assert not await probe()
        router.resume()
        await router.stop()
        assert await probe.look() == "nobody"
        await probe.aclose()


def probe_of(url: str) -> HttpProbe:
    endpoint = Endpoint(host="127.0.0.1", port=int(url.split(":")[2].split("/")[0]), name="b", base_path="/api")
    return HttpProbe(endpoint, "/v1/models", (), connect_s=1.0, proxied=False)
