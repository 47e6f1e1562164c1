"""Clients for other gateways: one for each and each of its addresses."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx
import pytest
from fakes.certificates import make_pair

from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.peer_connections import PeerConnections

pytestmark = pytest.mark.anyio

HERE = Member(id="b", name="attic", version="1", url="http://127.0.0.1:1")
MOVED = Member(id="b", name="attic", version="1", url="http://127.0.0.2:1")


async def client(connections: PeerConnections, member: Member) -> httpx.AsyncClient:
    async with connections.client(member) as found:
        return found


async def test_a_client_is_kept_while_its_gateway_is_there() -> None:
    members = {"b": HERE}
    connections = PeerConnections(lambda: members)
    kept = await client(connections, HERE)
    await connections.close_stale()
    assert await client(connections, HERE) is kept
    members.clear()
    await connections.close_stale()
    assert kept.is_closed and await client(connections, HERE) is not kept
    await connections.aclose()


async def test_requests_at_the_same_time_share_a_client() -> None:
    connections, found = PeerConnections(lambda: {"b": HERE}), set[int]()

    async def use() -> None:
        async with connections.client(HERE) as one:
            found.add(id(one))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(use)
    assert len(found) == 1
    await connections.aclose()


async def test_a_client_for_an_old_address_is_closed_after_its_last_request() -> None:
    connections = PeerConnections(lambda: {"b": MOVED})
    async with connections.client(HERE) as old:
        new = await client(connections, MOVED)
        assert new is not old and not old.is_closed
    assert old.is_closed
    await connections.close_stale()
    assert await client(connections, MOVED) is new
    async with connections.client(MOVED):
        await connections.aclose()
        assert not new.is_closed
    assert new.is_closed


async def test_a_new_certificate_is_another_client(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "gateway")
    secure = Member(
        id="b",
        name="attic",
        version="1",
        url="https://127.0.0.1:1",
        certificate=await anyio.Path(pair.cert).read_text(),
    )
    connections = PeerConnections(lambda: {"b": secure})
    old = await client(connections, HERE)
    assert await client(connections, secure) is not old
    assert old.is_closed
    await connections.aclose()
