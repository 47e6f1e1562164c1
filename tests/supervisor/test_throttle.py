"""Whoever guesses tokens waits; whoever knows the right one does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from hostler.supervisor.api import create_app
from hostler.supervisor.auth import FailureThrottle

Serve = Callable[[Starlette], AbstractAsyncContextManager[str]]


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
async def test_after_many_wrong_tokens_an_address_is_told_to_wait_and_the_right_one_passes(
    pretended: Any, serve: Serve
) -> None:
    async with serve(create_app(pretended, token="right")) as url, httpx.AsyncClient(base_url=url) as http:
        codes = []
        for number in range(60):
            answer = await http.get("/models/status", headers={"Authorization": f"Bearer wrong-{number}"})
            codes.append(answer.status_code)
        assert codes == [401] * 50 + [429] * 10
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        # Without any token nothing is guessed.
        assert (await http.get("/models/status")).status_code == 401
        assert (await http.get("/models/status", headers={"Authorization": "Bearer right"})).status_code == 200
