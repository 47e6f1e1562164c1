"""Health checks: one at a time, at once on request, and what they spare requests."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from fakes.certificates import make_pair
from fakes.fake_openrouter import start_openrouter

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.backends.chain import supervisor_endpoint
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.health_checks import (
    CheckedBackend,
    CheckResult,
    HealthCheck,
    HealthChecker,
    HttpCheck,
    responds,
)
from hostler.gateway.backends.transport import Endpoint

pytestmark = pytest.mark.anyio


class FakeBackend:
    """Responds while `responds` is set, and counts its checks."""

    def __init__(self) -> None:
        self.breakers = CircuitBreakers(BreakerRules(jitter=0.0, open_s=600.0), lambda: 0.0)
        self.responds = True
        self.checks = 0
        self.together = 0
        self.most_together = 0
        self.checked = anyio.Event()

    async def check(self) -> bool:
        self.checks += 1
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await anyio.lowlevel.checkpoint()
        self.together -= 1
        self.checked.set()
        return self.responds

    async def checked_times(self, times: int) -> None:
        with anyio.fail_after(20):
            while self.checks < times:
                self.checked = anyio.Event()
                await self.checked.wait()
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def checking(
    backend: FakeBackend,
    *,
    every_s: float | None = None,
    down_every_s: float | None = 0.005,
    opens_circuit: bool = True,
    on_result: Callable[[bool], None] = lambda _: None,
) -> AsyncIterator[HealthCheck]:
    checked = CheckedBackend(
        name="b",
        breakers=backend.breakers,
        check=backend.check,
        takes_s=60.0,
        every_s=every_s,
        down_every_s=down_every_s,
        opens_circuit=opens_circuit,
        on_result=on_result,
    )
    checker = HealthChecker([checked], clock=time.monotonic, random=lambda: 0.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(checker.run)
        yield checker.of("b")
        tasks.cancel_scope.cancel()


def usable(backend: FakeBackend) -> bool:
    return backend.breakers.allows("m", time.monotonic())


async def test_checks_periodically_while_the_backend_responds() -> None:
    backend = FakeBackend()
    async with checking(backend, every_s=0.01):
        await backend.checked_times(3)
    assert usable(backend)


async def test_without_a_period_a_backend_is_checked_only_on_request() -> None:
    backend = FakeBackend()
    async with checking(backend):
        await anyio.sleep(0.05)
    assert backend.checks == 0


async def test_a_backend_to_be_checked_gets_no_requests_until_it_responds() -> None:
    backend = FakeBackend()
    async with checking(backend, every_s=3600) as health:
        await anyio.lowlevel.checkpoint()
        health.check_now()
        assert not usable(backend)
        await backend.checked_times(1)
        assert usable(backend)


async def test_many_requests_for_a_check_are_one_check() -> None:
    backend = FakeBackend()
    async with checking(backend) as health:
        await anyio.lowlevel.checkpoint()
        for _ in range(100):
            health.check_now()
        await backend.checked_times(1)
        await anyio.sleep(0.02)
    assert backend.checks == 1
    assert backend.most_together == 1


async def test_a_dead_backend_stays_open_and_is_used_again_after_one_response() -> None:
    backend = FakeBackend()
    backend.responds = False
    async with checking(backend, every_s=3600) as health:
        await anyio.lowlevel.checkpoint()
        health.check_now()
        await backend.checked_times(5)
        assert not usable(backend)
        assert backend.breakers.state("m", time.monotonic()) == "open"
        health.check_now()
        backend.responds = True
        await backend.checked_times(backend.checks + 1)
        assert usable(backend)
        assert backend.breakers.state("m", time.monotonic()) == "closed"


async def test_a_backend_checked_on_request_is_checked_until_it_responds() -> None:
    backend = FakeBackend()
    backend.responds = False
    async with checking(backend) as health:
        await anyio.lowlevel.checkpoint()
        health.check_now()
        await backend.checked_times(3)
        assert not usable(backend)
        backend.responds = True
        await backend.checked_times(backend.checks + 1)
        assert usable(backend)
        checks = backend.checks
        await anyio.sleep(0.05)
        assert backend.checks == checks


async def test_a_machine_that_requests_wake_stays_open_to_them() -> None:
    backend, results = FakeBackend(), list[bool]()
    backend.responds = False
    async with checking(backend, opens_circuit=False, on_result=results.append) as health:
        await anyio.lowlevel.checkpoint()
        health.check_now()
        await backend.checked_times(3)
        assert usable(backend)
        backend.responds = True
        await backend.checked_times(backend.checks + 1)
    assert (results[:2], results[-1]) == ([False, False], True)


async def test_one_check_is_enough_where_something_else_reports_the_return() -> None:
    backend = FakeBackend()
    backend.responds = False
    async with checking(backend, down_every_s=None) as health:
        await anyio.lowlevel.checkpoint()
        health.check_now()
        await backend.checked_times(1)
        await anyio.sleep(0.05)
    assert backend.checks == 1


@pytest.mark.parametrize(
    ("status", "responds"), [(200, True), (401, True), (404, True), (503, True), (500, False), (502, False)]
)
async def test_any_response_counts_but_that_of_a_broken_proxy(status: int, responds: bool) -> None:
    async with start_openrouter("b") as router:
        router.health_check_status = status
        check = check_of(router.url)
        assert await check() is responds
        assert router.health_checks == ["/api/v1/models"]
        await check.aclose()


async def test_an_unreachable_backend_fails_the_check() -> None:
    async with start_openrouter("b") as router:
        await router.stop()
        check = check_of(router.url)
        assert not await check()
        await check.aclose()


@pytest.mark.parametrize(
    ("results", "busy", "expected"),
    [
        (["responds"], False, True),
        (["silent", "responds"], False, True),
        (["unreachable", "responds"], True, True),
        (["silent", "silent"], False, False),
        (["silent"], True, True),  # its threads all have work, and its kernel takes the connection
        (["unreachable", "unreachable"], True, False),
    ],
)
async def test_a_busy_server_need_only_accept_connections(
    results: list[CheckResult], busy: bool, expected: bool
) -> None:
    left = iter(results)

    async def result() -> CheckResult:
        return next(left)

    assert await responds(result, busy=busy, tries=2) is expected
    assert not list(left)


async def test_a_remote_backend_is_checked_more_often_before_it_counts_as_gone() -> None:
    left: list[CheckResult] = ["silent", "silent", "responds"]

    async def result() -> CheckResult:
        return left.pop(0)

    assert await responds(result, busy=False, tries=5)
    assert not left


async def test_a_silent_server_is_distinguished_from_an_unreachable_one() -> None:
    async with start_openrouter("r") as router:
        url = urlsplit(router.url)
        endpoint = Endpoint(host=url.hostname or "", port=url.port or 0, name="r")
        check = HttpCheck(endpoint, "/health", (), connect_s=1.0, proxied=False, timeout_s=0.05)
        router.freeze()
        assert await check.result() == "silent"
        assert not await check()
        router.resume()
        await router.stop()
        assert await check.result() == "unreachable"
        await check.aclose()


async def test_a_supervisor_with_a_certificate_of_its_own_responds(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "gpu-box")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(*pair)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=served) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = BackendSettings(kind="supervisor", url=url, certificate=pair.cert)
        check = HttpCheck(supervisor_endpoint("gpu-box", settings), "/healthz", (), connect_s=5.0, proxied=False)
        assert await check()
        await check.aclose()


def check_of(url: str) -> HttpCheck:
    endpoint = Endpoint(host="127.0.0.1", port=int(url.split(":")[2].split("/")[0]), name="b", base_path="/api")
    return HttpCheck(endpoint, "/v1/models", (), connect_s=1.0, proxied=False)
