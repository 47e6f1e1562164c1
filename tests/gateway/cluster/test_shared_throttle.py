"""Invalid keys are counted over all gateways."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.cluster_members import ClusterMember, members_running
from fakes.redis_server import needs_redis, redis_server
from fakes.store_client import running, until

from hostler.adapters.errors import RateLimited, Unauthenticated
from hostler.gateway.auth.middleware import KeyThrottle
from hostler.gateway.cluster.shared_throttle import SharedThrottle

pytestmark = [pytest.mark.anyio, needs_redis]


class ThrottlingGateway(ClusterMember):
    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name)
        self.throttle = KeyThrottle(limit=10)
        self.shared = SharedThrottle(self.throttle, self.announcements, b"secret")

    def limits(self, address: str) -> bool:
        return isinstance(self.throttle.refusal(address, "invalid"), RateLimited)


async def test_an_address_is_throttled_for_what_it_has_tried_at_other_gateways(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server:
        heard: list[bytes] = []
        first, second = (ThrottlingGateway(server.url, name) for name in "ab")
        listener = ClusterMember(server.url, "c")
        listener.announcements.listen("wrong-keys", lambda _, message: heard.append(message))
        async with running(first.shared.run, second.shared.run), members_running(first, second, listener):
            assert not any(first.limits("192.0.2.1") for _ in range(10))
            await until(lambda: heard)
            await until(lambda: second.limits("192.0.2.1"))
            assert isinstance(second.throttle.refusal("192.0.2.2", "invalid"), Unauthenticated)
        assert b"192.0.2" not in heard[0]


async def test_without_the_store_each_gateway_counts_on_its_own() -> None:
    gateway = ThrottlingGateway("redis://127.0.0.1:9", "a")
    assert not any(gateway.limits("192.0.2.1") for _ in range(10))
    assert gateway.limits("192.0.2.1")
