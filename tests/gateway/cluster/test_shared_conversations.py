"""Which host holds a conversation, as gateways tell each other."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from fakes.cluster_members import ClusterMember, members_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import running, until

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.cluster.shared_conversations import SharedConversations
from hostler.gateway.cluster.shared_log import SharedLog
from hostler.gateway.conversation_places import ConversationPlaces
from hostler.supervisor.contract import PromptIdentity

pytestmark = [pytest.mark.anyio, needs_redis]

FIRST = PromptIdentity(marks=((1, 10), (2, 500)))
NEXT = PromptIdentity(marks=((1, 10), (2, 500), (3, 600), (4, 700)))
LOG = "hostler:home:conversations"


class TalkingGateway(ClusterMember):
    """`hosts` are the URLs of its hosts by the names that it gives them."""

    def __init__(self, url: str, name: str, *, token: str | None = "secret", **hosts: str) -> None:
        super().__init__(url, name, SharedLog.scripts, token=token)
        self.now = time.time()
        self.names = hosts.keys()
        entries = {each: BackendSettings(kind="supervisor", url=address) for each, address in hosts.items()}
        self.places = ConversationPlaces(entries, secret=b"secret", wall=lambda: self.now)
        self.shared = SharedConversations(
            self.store, self.signer, (name, name), self.places, wall=lambda: self.now, every_s=0.01
        )

    def found(self, prompt: PromptIdentity = NEXT, model: str = "m") -> tuple[str, int] | None:
        return self.places.find(model, prompt, self.names)


@asynccontextmanager
async def talking(*gateways: TalkingGateway) -> AsyncIterator[None]:
    async with members_running(*gateways), running(*(each.shared.run for each in gateways)):
        yield


async def test_a_gateway_knows_where_a_conversation_of_another_one_is(server: RedisServer) -> None:
    one = TalkingGateway(server.url, "a", pc="http://pc:1", attic="http://attic:1")
    two = TalkingGateway(server.url, "b", big="http://pc:1", small="http://attic:1")
    async with talking(one, two):
        one.places.answered("attic", "m", FIRST)
        assert one.found() == ("attic", 500)
        await until(two.found)
        assert two.found() == ("small", 500)
        assert two.found(model="another") is None
        assert two.found(PromptIdentity(marks=((1, 10), (9, 500)))) is None
        assert two.places.find("m", NEXT, ["big"]) is None
        # It went on elsewhere.
        two.places.answered("big", "m", NEXT)
        await until(lambda: one.found() == ("pc", 700))
    later = TalkingGateway(server.url, "c", pc="http://pc:1")
    async with talking(later):
        await until(later.found)
        later.now += 7 * 3600
        assert later.found() is None


async def test_without_the_store_a_gateway_knows_its_own(server: RedisServer) -> None:
    one, two = (TalkingGateway(server.url, name, pc="http://pc:1") for name in "ab")
    async with talking(one, two):
        server.kill()
        await until(lambda: not one.store.connected and not two.store.connected)
        one.places.answered("pc", "m", FIRST)
        assert (one.found(), two.found()) == (("pc", 500), None)
        server.start()
        await until(two.found)


async def test_many_answers_need_few_calls_and_reveal_no_prompt(server: RedisServer) -> None:
    one, two = (TalkingGateway(server.url, name, pc="http://pc:1") for name in "ab")
    async with talking(one, two):
        server("CONFIG", "RESETSTAT")
        for number in range(1000, 2000):
            one.places.answered("pc", "m", PromptIdentity(marks=((number, 500),)))
        await until(lambda: two.found(PromptIdentity(marks=((1999, 500),))))
        assert server.count("evalsha") <= 40
    kept = server("XRANGE", LOG, "-", "+")
    assert "[1999," not in kept
    assert "http://pc" not in kept


@pytest.mark.parametrize(
    "entry",
    [
        ["x", "m", "h", 1.0],
        [1, "m" * 5000, "h", 1.0],
        [1, "m", "h", 1e12],
        [1, "m", {"deep": [[[[]]]]}, 1.0],
        [10**30, "<b>", "h", 1.0],
        {},
    ],
)
async def test_entries_that_no_gateway_would_have_written_do_no_harm(server: RedisServer, entry: Any) -> None:
    one, two = TalkingGateway(server.url, "a", pc="http://pc:1"), TalkingGateway(server.url, "b", pc="http://pc:1")
    log = SharedLog(
        one.store, one.signer, ("a", "a"), "conversations", max_bytes=10**6, ttl_s=100, on_batch=lambda batch: None
    )
    other = TalkingGateway(server.url, "c", pc="http://pc:1")
    async with members_running(one), running(log.run), talking(two, other):
        log.add(msgspec.json.encode(entry))
        await until(lambda: not log.waiting)
        other.places.answered("pc", "m", FIRST)
        await until(two.found)
    assert two.found() == ("pc", 500)
