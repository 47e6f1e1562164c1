"""Hosts that only other gateways use."""

from __future__ import annotations

import time
from typing import Any

import anyio
import msgspec
import pytest
from fakes.cluster_members import ClusterMember, members_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import until

from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.shared_hosts import SharedHosts
from hostler.gateway.cluster_view import GatewayHost, HostElsewhere, HostModel

pytestmark = [pytest.mark.anyio, needs_redis]

MODEL = HostModel(model="m", phase="ready", running=1, parallel=2, waiting=0)


def host(generation: int, name: str, **more: Any) -> GatewayHost:
    fields = {"reachable": True, "draining": False, "serving": 1, "waiting": 0, "memory_bytes": 7, "models": (MODEL,)}
    return GatewayHost(generation, HostElsewhere(name=name, **{**fields, **more}))


class HostingGateway(ClusterMember):
    """`hosts` are the generations of its hosts by name."""

    def __init__(self, url: str, name: str, **hosts: int) -> None:
        super().__init__(url, name)
        members = {each: Member(id=each, name=f"gateway {each}", version="1") for each in "abc"}
        self.shared = SharedHosts(
            self.announcements,
            own=lambda: [host(number, own) for own, number in hosts.items()],
            gateways=lambda: members,
            clock=time.monotonic,
        )

    def found(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(each.name, each.gateways) for each in self.shared.elsewhere()]


async def test_every_gateway_shows_the_hosts_that_it_does_not_use_each_once(server: RedisServer) -> None:
    one = HostingGateway(server.url, "a", pc=1)
    two = HostingGateway(server.url, "b", computer=1, attic=2)
    three = HostingGateway(server.url, "c", loft=2, pc=3)
    async with members_running(one, two, three):
        with anyio.fail_after(20):
            while len(one.found()) < 2 or len(one.found()[0][1]) < 2 or len(two.found()) < 1 or len(three.found()) < 1:
                for each in (one, two, three):
                    each.shared.announce()
                await anyio.sleep(0.01)
        assert {gateways for _, gateways in one.found()} == {("gateway b", "gateway c"), ("gateway c",)}
        assert two.found() == [("pc", ("gateway c",))]
        # The first gateway's name for it is as good as any other.
        assert [gateways for _, gateways in three.found()] == [("gateway a", "gateway b")]
        [seen] = two.shared.elsewhere()
        assert (seen.reachable, seen.serving, seen.memory_bytes, seen.models) == (True, 1, 7, (MODEL,))


async def test_hosts_of_a_gateway_that_is_silent_are_not_shown_for_long(server: RedisServer) -> None:
    one, two = HostingGateway(server.url, "a"), HostingGateway(server.url, "b", attic=2)
    async with members_running(one):
        async with members_running(two):
            with anyio.fail_after(20):
                while not one.found():
                    two.shared.announce()
                    await anyio.sleep(0.01)
        await until(lambda: not one.found())


@pytest.mark.parametrize(
    "message",
    [
        "x",
        [[1]],
        [[1, {"name": "x"}]],
        msgspec.Raw(b"[" * 900 + b"]" * 900),
        [host(2, "x" * 5000)],
        [host(2, "x", memory_bytes=10**40)],
        [host(2, "x", serving=-1)],
        [host(2, "x", models=(msgspec.structs.replace(MODEL, running=10**400),))],
    ],
)
async def test_messages_that_no_gateway_would_have_sent_do_no_harm(server: RedisServer, message: Any) -> None:
    one, two = HostingGateway(server.url, "a"), HostingGateway(server.url, "b", attic=2)
    async with members_running(one, two):
        with anyio.fail_after(20):
            while not one.found():
                two.announcements.send("gateway-hosts", message)
                two.shared.announce()
                await anyio.sleep(0.01)
        assert one.found() == [("attic", ("gateway b",))]
