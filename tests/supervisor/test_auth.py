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
    ("header", "allowed"),
    [
        ("gpu.lan:8080", True),
        ("10.0.0.5", True),
        ("[fe80::1]:8080", True),
        ("[::1]", True),
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST.:8000", True),
        ("host.docker.internal:8000", True),
        ("host.containers.internal", True),
        ("box.local", True),
        ("box.localhost", True),
        ("evil.example", False),
        ("local", False),
        ("internal.evil.example", False),
        ("box.local.evil.example", False),
        ("notlocal", False),
        ("2130706433", False),
        ("0x7f.1", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.5@evil.example", False),
        ("run", False),
        ("", False),
    ],
)
def test_a_host_header_has_to_name_this_server(header: str, allowed: bool) -> None:
    check = HostCheck(["GPU.lan"])
    assert [check.allows(header), check.allows(header)] == [allowed, allowed]


@pytest.mark.parametrize(
    ("pattern", "header", "allowed"),
    [
        ("*.home.example", "llm.home.example:8000", True),
        ("*.Home.example", "A.B.home.EXAMPLE.", True),
        ("*.home.example", "home.example", False),
        ("*.home.example", "evilhome.example", False),
        ("*.home.example", "llm.home.example.evil", False),
        ("*.home.example", ".home.example", False),
        ("llm-*.lan", "llm-1.lan", True),
        ("llm-*.lan", "llm-1.evil.lan", False),
        ("a.b.lan", "axb.lan", False),
        ("*.b-c.lan", "x.bxc.lan", False),
    ],
)
def test_wildcards_stand_for_names_below(pattern: str, header: str, allowed: bool) -> None:
    assert HostCheck([pattern]).allows(header) is allowed


def test_a_token_has_to_be_equal_byte_by_byte() -> None:
    check = TokenCheck("secret")
    assert [check.matches(token) for token in (b"secret", b"Secret", b"secret ", b"")] == [True, False, False, False]


@pytest.mark.anyio
async def test_the_clusters_token_is_valid_beside_the_supervisors_own(
    fake_supervisor: Any, serve_api: ServeAPI
) -> None:
    async with (
        serve_api(fake_supervisor, token="own", cluster_token="the cluster's") as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        tokens = {"own": 200, "the cluster's": 200, "guessed": 401}
        for token, status in tokens.items():
            answer = await http.get("/models/status", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == status, token
    async with (
        serve_api(fake_supervisor, cluster_token="the cluster's") as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/models/status")).status_code == 401
