"""Stored responses that are found at every gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from fakes.cluster_members import SharingGateway, gateways_running, members_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import running, until

from hostler.adapters.stored_response import StoredResponse
from hostler.gateway.cluster.shared_responses import MAX_BYTES, SharedResponses
from hostler.gateway.response_store import ResponseStore

pytestmark = [pytest.mark.anyio, needs_redis]


def response(number: int, *, previous: int | None = None, size: int = 10) -> StoredResponse:
    return StoredResponse(
        id=f"resp_{number}",
        at=time.time(),
        body=msgspec.Raw(b'"' + b"x" * size + b'"'),
        output={f"msg_{number}": msgspec.Raw(b'{"id":"msg_%d"}' % number)},
        previous=None if previous is None else f"resp_{previous}",
    )


class StoringGateway(SharingGateway):
    def __init__(self, server: RedisServer, name: str, *, token: str = "secret", max_age_s: float = 3600) -> None:
        super().__init__(server.url, name, SharedResponses.scripts, token=token)
        self.responses = ResponseStore(None, max_bytes=10**7, max_age_s=3600, wall=time.time)
        self.shared = SharedResponses(self.store, self.signer, self.announcements, self.responses, max_age_s=max_age_s)

    async def finds(self, *ids: str, client: str = "bob") -> bool:
        await self.shared.fetch(client, ids)
        of_client = self.responses.of(client)
        return all(of_client.find(each) is not None or of_client.find_item(each) is not None for each in ids)


async def found(gateway: StoringGateway, *ids: str) -> None:
    with anyio.fail_after(20):
        while not await gateway.finds(*ids):  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def test_a_response_is_found_at_every_gateway_with_those_before_it(server: RedisServer) -> None:
    first, second = (StoringGateway(server, name) for name in "ab")
    async with gateways_running(first, second):
        for number in range(3):
            first.responses.add("bob", response(number, previous=number - 1 if number else None))
        await found(second, "resp_2")
        history = second.responses.of("bob").history("resp_2")
        assert history is not None
        assert [each.id for each in history] == ["resp_0", "resp_1", "resp_2"]
        third = StoringGateway(server, "c")
        async with gateways_running(third):
            await found(third, "msg_1")
            assert third.responses.find("bob", "resp_1") is not None
            assert third.responses.find("bob", "resp_2") is None


async def test_a_client_finds_no_other_clients_responses_and_strangers_add_none(server: RedisServer) -> None:
    first, second = (StoringGateway(server, name) for name in "ab")
    stranger = StoringGateway(server, "c", token="guessed")
    async with gateways_running(first, second, stranger):
        first.responses.add("bob", response(1))
        stranger.responses.add("bob", response(2))
        await found(second, "resp_1")
        await until(lambda: ":2" in server("ZCARD", next(_names(server, "responses-order"))))
        assert not await second.finds("resp_1", client="eve")
        assert not await second.finds("resp_2")


async def test_a_long_conversation_is_read_in_small_steps(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (StoringGateway(server, name) for name in "ab")
    async with gateways_running(first, second):
        for number in range(6):
            first.responses.add("bob", response(number, previous=number - 1 if number else None, size=50_000))
        await until(lambda: ":6" in server("ZCARD", next(_names(server, "responses-order"), "none")))
        answers: list[int] = []
        run_script = second.store.run_script

        async def counted(*arguments: Any, **named: Any) -> Any:
            answer = await run_script(*arguments, **named)
            answers.append(sum(map(len, answer)))
            return answer

        monkeypatch.setattr(second.store, "run_script", counted)
        await found(second, "resp_5")
        assert second.responses.of("bob").history("resp_5") is not None
        assert len(answers) == 3
        assert max(answers) <= MAX_BYTES
        assert not await second.finds("resp_7")
        assert len(answers) == 4


def _names(server: RedisServer, kind: str) -> Iterator[str]:
    return (name for name in server("KEYS", f"hostler:home:{kind}:*").splitlines() if name.startswith("hostler"))


async def test_a_deleted_response_is_gone_at_all_gateways(server: RedisServer) -> None:
    first, second, third = (StoringGateway(server, name) for name in "abc")
    async with gateways_running(first, second, third):
        first.responses.add("bob", response(1))
        await found(second, "resp_1")
        second.responses.delete("bob", "resp_1")
        await until(lambda: first.responses.find("bob", "resp_1") is None)
        assert not await third.finds("resp_1")
        assert not await third.finds("msg_1")
        assert not list(_names(server, "responses"))


async def test_a_deletion_that_is_not_yet_written_holds_and_is_not_forgotten(server: RedisServer) -> None:
    first, second = (StoringGateway(server, name) for name in "ab")
    async with gateways_running(first), members_running(second):
        first.responses.add("bob", response(1))
        first.responses.add("bob", response(2, previous=1))
        await found(second, "resp_1")
        second.responses.delete("bob", "resp_1")
        await found(second, "resp_2")
        assert second.responses.find("bob", "resp_1") is None
        for number in range(10, 260):
            second.responses.add("bob", response(number))
        async with running(second.shared.run):
            await until(lambda: first.responses.find("bob", "resp_1") is None)
            await until(lambda: server("HEXISTS", next(_names(server, "responses")), "r:resp_1") == ":0")


async def test_what_is_deleted_while_it_is_read_stays_deleted(server: RedisServer) -> None:
    first, second = (StoringGateway(server, name) for name in "ab")
    async with gateways_running(first, second):
        first.responses.add("bob", response(1))
        first.responses.add("bob", response(2, previous=1))
        await until(lambda: ":2" in server("ZCARD", next(_names(server, "responses-order"), "none")))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second.shared.fetch, "bob", ["resp_2"])
            await anyio.lowlevel.checkpoint()
            assert second.shared._deleted_meanwhile  # it reads now
            second.responses.delete("bob", "resp_1")
        assert second.responses.find("bob", "resp_2") is not None
        assert second.responses.find("bob", "resp_1") is None


async def test_the_store_drops_responses_that_are_too_old(server: RedisServer) -> None:
    gateway = StoringGateway(server, "a", max_age_s=10)
    async with gateways_running(gateway):
        gateway.responses.add("bob", msgspec.structs.replace(response(1), at=time.time() - 30))
        gateway.responses.add("bob", response(2))
        await until(lambda: server("HEXISTS", next(_names(server, "responses"), "none"), "r:resp_2") == ":1")
        assert server("HEXISTS", next(_names(server, "responses")), "r:resp_1") == ":0"
        assert server("ZCARD", next(_names(server, "responses-order"))) == ":1"


async def test_what_the_store_keeps_is_bounded_and_expires(server: RedisServer) -> None:
    first, second = (StoringGateway(server, name) for name in "ab")
    async with gateways_running(first, second):
        first.responses.add("bob", response(999, size=MAX_BYTES))
        for number in range(250):
            first.responses.add("bob", response(number))
            if number % 100 == 99:
                await found(second, f"resp_{number}")
        await found(second, "resp_249")
        [order], [data] = _names(server, "responses-order"), _names(server, "responses")
        assert server("ZCARD", order) == ":200"
        assert server("HLEN", data) == ":800"
        assert not await second.finds("resp_999")
        assert int(server("TTL", data).removeprefix(":")) > 0
        assert int(server("TTL", order).removeprefix(":")) > 0


async def test_without_the_store_responses_stay_where_they_are_and_are_written_later(server: RedisServer) -> None:
    first, second = (StoringGateway(server, name) for name in "ab")
    async with gateways_running(first, second):
        server.kill()
        await until(lambda: not first.store.connected)
        first.responses.add("bob", response(1))
        assert first.responses.find("bob", "resp_1") is not None
        assert not await second.finds("resp_1")
        server.start()
        await found(second, "resp_1")
