"""Requests in flight at all gateways, shown and cancelled at any of them."""

from __future__ import annotations

import time

import anyio
import pytest
from fakes.cluster_members import SharingGateway, gateways_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import until

from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.shared_requests import SharedRequests
from hostler.gateway.in_flight import RequestView

pytestmark = [pytest.mark.anyio, needs_redis]


class BusyGateway(SharingGateway):
    """Each has one request in flight, with its own name."""

    def __init__(self, url: str, name: str, gateways: str = "abc") -> None:
        super().__init__(url, name)
        self.cancelled: list[str] = []
        members = {each: Member(id=each, name=f"gateway {each}", version="1") for each in gateways}
        self.shared = SharedRequests(
            self.announcements,
            own_id=name,
            own=lambda: [
                RequestView(id=name, at=1.0, protocol="openai", operation="chat", client="bob", phase="waiting")
            ],
            cancel_own=self._cancel,
            gateways=lambda: members,
            clock=time.monotonic,
        )

    async def _cancel(self, request_id: str) -> int:
        if request_id != self.name:
            return 0
        self.cancelled.append(request_id)
        return 1


async def test_every_gateway_shows_the_requests_of_all(server: RedisServer) -> None:
    first, second, third = (BusyGateway(server.url, name) for name in "abc")
    async with gateways_running(first, second, third):
        assert first.shared.views() == []
        with anyio.fail_after(20):
            while len(first.shared.views()) < 2:
                await first.shared.refresh()
                await anyio.sleep(0.01)
        assert sorted((each.id, each.gateway) for each in first.shared.views()) == [
            ("b", "gateway b"),
            ("c", "gateway c"),
        ]


async def test_requests_are_cancelled_wherever_they_are(server: RedisServer) -> None:
    first, second, third = (BusyGateway(server.url, name) for name in "abc")
    async with gateways_running(first, second, third):
        with anyio.fail_after(20):
            while not third.cancelled:
                assert await first.shared.cancel("c") <= 1
                await anyio.sleep(0.01)
        assert await first.shared.cancel("unknown") == 0
        assert (first.cancelled, second.cancelled) == ([], [])


async def test_a_gateway_alone_asks_nobody() -> None:
    alone = BusyGateway("redis://127.0.0.1:9", "a", gateways="a")
    await alone.shared.refresh()
    assert await alone.shared.cancel("b") == 0
    assert alone.announcements.sent == 0


async def test_requests_of_a_gateway_that_is_silent_are_not_shown_for_long(server: RedisServer) -> None:
    first, second = (BusyGateway(server.url, name, gateways="ab") for name in "ab")
    async with gateways_running(first):
        async with gateways_running(second):
            with anyio.fail_after(20):
                while not first.shared.views():
                    await first.shared.refresh()
                    await anyio.sleep(0.01)
        await until(lambda: not first.shared.views())
