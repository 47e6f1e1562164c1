"""A supervisor as a member of a cluster: how its machine is woken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import running, until

from hostler.gateway.cluster import host_member
from hostler.gateway.cluster.host_member import HostMember
from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.wake_settings import WakeSettings
from hostler.supervisor.config import SleepSettings, SupervisorSettings

pytestmark = needs_redis


CARD, WRITTEN = WakeSettings(mac="01:23:45:67:89:ab"), WakeSettings(mac="01:23:45:67:89:ac")
SLEEP = SleepSettings(after_s=600, suspend=True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sleep", "written", "card", "wake"),
    [
        (None, None, CARD, None),
        (SLEEP, None, CARD, CARD),
        (SLEEP, None, None, None),
        (SLEEP, WRITTEN, CARD, WRITTEN),
        (None, WRITTEN, CARD, WRITTEN),
    ],
)
async def test_a_machine_that_sleeps_says_how_it_is_woken(
    sleep: SleepSettings | None, written: WakeSettings | None, card: WakeSettings | None, wake: WakeSettings | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    asked: list[str] = []
    monkeypatch.setattr(host_member, "network_card", lambda address: (asked.append(address), card)[1])
    member = HostMember(
        ClusterSettings(store="redis://127.0.0.1:1", url="http://192.168.1.9:8080", wake=written),
        SupervisorSettings(sleep=sleep), token="t", state=lambda name: tmp_path / name,
    )  # fmt: skip
    try:
        found = [await member._find_address(), await member._find_address()]
    finally:
        member.close()
    assert [address.wake for address in found if address is not None] == [wake, wake]
    assert asked == (["192.168.1.9"] * 2 if sleep is not None and written is None else [])
    assert caplog.text.count("set cluster.wake") == (1 if asked and card is None else 0)


@asynccontextmanager
async def member_of(server: RedisServer, folder: Path) -> AsyncIterator[HostMember]:
    member = HostMember(
        ClusterSettings(store=server.url, name="home", url="http://192.168.1.9:8080"), SupervisorSettings(),
        token="secret", state=lambda name: folder / name,
    )  # fmt: skip
    try:
        async with running(member.run):
            yield member
    finally:
        member.close()


@pytest.mark.anyio
async def test_reports_do_not_wait_while_the_address_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    looked: list[int] = []

    async def slow_name_server(*_: object) -> str:
        looked.append(1)
        if len(looked) > 1:
            await anyio.sleep_forever()
        return "http://192.168.1.9:8080"

    monkeypatch.setattr(host_member, "announced_url", slow_name_server)
    monkeypatch.setattr(host_member, "_ADDRESS_S", 0)
    async with member_of(server, tmp_path) as member:
        await until(lambda: len(looked) == 2 and server("KEYS", "hostler:home:host:*") != "*0")
        reported = member._store.calls["ok"]
        await until(lambda: member._store.calls["ok"] > reported)


@pytest.mark.anyio
async def test_a_host_without_an_address_looks_for_one_again_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    found = [None, "http://192.168.1.9:8080"]

    async def name_server(*_: object) -> str | None:
        return found.pop(0)

    monkeypatch.setattr(host_member, "announced_url", name_server)
    monkeypatch.setattr(host_member, "_ADDRESS_S", 3600)
    async with member_of(server, tmp_path):
        await until(lambda: server("KEYS", "hostler:home:host:*") != "*0")
