"""Messages between gateways: to all others, from members only, and lost without harm."""

from __future__ import annotations

import pytest
from fakes.cluster_members import ClusterMember, members_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import until

pytestmark = [pytest.mark.anyio, needs_redis]


async def test_messages_reach_all_others_and_no_strangers(server: RedisServer) -> None:
    heard: list[tuple[str, str, bytes]] = []
    members = [ClusterMember(server.url, name) for name in "abc"]
    members.append(ClusterMember(server.url, "stranger", token="guessed"))
    for each in members:
        each.announcements.listen("news", lambda sender, message, each=each: heard.append((each.name, sender, message)))
    async with members_running(*members):
        server("PUBLISH", "hostler:home:news", "no message of a member")
        members[3].announcements.send("news", "forged")
        members[0].announcements.send("news", {"number": 1})
        await until(lambda: len(heard) == 2)
        members[1].announcements.send("news", 2)
        await until(lambda: len(heard) == 4)
    assert sorted(heard[:2]) == [("b", "a", b'{"number":1}'), ("c", "a", b'{"number":1}')]
    assert sorted(heard[2:]) == [("a", "b", b"2"), ("c", "b", b"2")]


async def test_without_the_store_messages_are_dropped(server: RedisServer) -> None:
    heard: list[bytes] = []
    first, second = (ClusterMember(server.url, name) for name in "ab")
    second.announcements.listen("news", lambda _, message: heard.append(message))
    async with members_running(first, second):
        server.kill()
        first.announcements.send("news", "lost")
        await until(lambda: not first.store.connected)
        first.announcements.send("news", "lost as well")
        server.start()
        await until(lambda: first.store.connected and second.store.connected)
        first.announcements.send("news", "heard")
        await until(lambda: heard)
    assert heard == [b'"heard"']
