"""Host names, tokens and their throttle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from hostler.supervisor.auth import FailureThrottle, HostCheck, TokenCheck, host_name

ServeAPI = Callable[..., AbstractAsyncContextManager[str]]


def test_counts_within_a_window_and_by_address() -> None:
    now = 0.0
    throttle = FailureThrottle(limit=2, window_s=10, clock=lambda: now)
    assert [throttle.failed("x") for _ in range(3)] == [0, 0, 10]
    now = 4
    assert (throttle.failed("x"), throttle.failed("y")) == (6, 0)
    now = 11
    assert throttle.failed("x") == 0


def test_remembers_so_many_addresses_only() -> None:
    throttle = FailureThrottle(limit=1, remember=2, clock=lambda: 0.0)
    for address in "xyz":
        throttle.failed(address)
    assert (throttle.failed("x"), throttle.failed("z") > 0) == (0, True)


@pytest.mark.anyio
async def test_after_many_wrong_tokens_an_address_is_throttled_and_the_right_token_passes(
    fake_supervisor: Any, serve_api: ServeAPI
) -> None:
    async with serve_api(fake_supervisor, token="right") as url, httpx.AsyncClient(base_url=url) as http:
        codes = []
        for number in range(60):
            answer = await http.get("/models/status", headers={"Authorization": f"Bearer wrong-{number}"})
            codes.append(answer.status_code)
        assert codes == [401] * 50 + [429] * 10
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        # A request without a token is no guess.
        assert (await http.get("/models/status")).status_code == 401
        assert (await http.get("/models/status", headers={"Authorization": "Bearer right"})).status_code == 200


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("gpu.lan", "gpu.lan"),
        ("GPU.lan.:8080", "gpu.lan"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]:8080", "::1"),
        ("[0:0::1]", "::1"),
        ("", None),
        ("a:b", None),
        ("user@gpu.lan", None),
        ("gpu.lan/x", None),
        ("[::1", None),
    ],
)
def test_reads_a_host_header(header: str, name: str | None) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("header", "bound", "allowed"),
    [
        ("gpu.lan:8080", "10.0.0.5", True),
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.6", "10.0.0.5", False),
        ("evil.example", "127.0.0.1", False),
        ("localhost", "127.0.0.1", True),
        ("localhost", "", True),
        ("localhost", "10.0.0.5", False),
        ("[fe80::1]:8080", "fe80::1%eth0", True),
        ("localhost", "::ffff:127.0.0.1", True),
        ("localhost", "/run/hostler.sock", True),
        ("run", "/run/hostler.sock", False),
    ],
)
def test_a_host_header_has_to_name_this_server(header: str, bound: str, allowed: bool) -> None:
    check = HostCheck(["GPU.lan"])
    assert [check.allows(header, bound), check.allows(header, bound)] == [allowed, allowed]


def test_loopback_names_may_be_allowed_on_every_connection() -> None:
    assert HostCheck([], loopback_everywhere=True).allows("localhost:8080", "10.0.0.5")


def test_a_token_has_to_be_equal_byte_by_byte() -> None:
    check = TokenCheck("secret")
    assert [check.matches(token) for token in (b"secret", b"Secret", b"secret ", b"")] == [True, False, False, False]
