"""Hosts are added at once, and removed once their requests have ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from hostler.gateway.joined_host import JoinedHost
from hostler.gateway.joining_hosts import JoiningHosts

pytestmark = pytest.mark.anyio


class Hosts:
    """Keeps a note of each call. A removal ends when `requests_ended` is set."""

    def __init__(self) -> None:
        self.joined: dict[str, JoinedHost] = {}
        self.calls: list[str] = []
        self.requests_ended = anyio.Event()

    def add_host(self, joined: JoinedHost) -> None:
        self.joined[joined.name] = joined
        self.calls.append(f"add {joined.name} at {joined.url}")

    def renew_certificate(self, joined: JoinedHost) -> None:
        self.joined[joined.name] = joined
        self.calls.append(f"renew {joined.name}")

    async def remove_host(self, name: str) -> None:
        del self.joined[name]
        self.calls.append(f"remove {name}")
        await self.requests_ended.wait()


def host(name: str, url: str = "https://one", certificate: str = "first") -> JoinedHost:
    return JoinedHost(name=name, url=url, token="t", certificate=certificate)


@asynccontextmanager
async def running(joining: JoiningHosts) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(joining.run)
        yield
        tasks.cancel_scope.cancel()


async def settled() -> None:
    await anyio.wait_all_tasks_blocked()


async def test_hosts_join_and_leave() -> None:
    hosts, added = Hosts(), list[str]()
    joining = JoiningHosts(hosts, added.append)
    joining.update([host("a")])
    async with running(joining):
        joining.update([host("a"), host("b")])
        joining.update([host("b")])
        await settled()
        joining.update([host("b")])
        await settled()
    assert hosts.calls == ["add a at https://one", "add b at https://one", "remove a"]
    assert added == ["a", "b"]
    assert joining.wanted == (host("b"),)


async def test_a_moved_host_is_used_at_its_new_address_once_requests_at_the_old_one_have_ended() -> None:
    hosts = Hosts()
    joining = JoiningHosts(hosts)
    async with running(joining):
        joining.update([host("a")])
        joining.update([host("a", "https://two")])
        await settled()
        assert hosts.calls == ["add a at https://one", "remove a"]
        hosts.requests_ended.set()
        await settled()
    assert hosts.calls[2:] == ["add a at https://two"]


async def test_a_host_that_returns_while_it_is_removed_is_used_again() -> None:
    hosts = Hosts()
    joining = JoiningHosts(hosts)
    async with running(joining):
        joining.update([host("a")])
        joining.update([])
        await settled()
        joining.update([host("a")])
        hosts.requests_ended.set()
        await settled()
    assert hosts.calls == ["add a at https://one", "remove a", "add a at https://one"]


async def test_a_renewed_certificate_interrupts_nothing() -> None:
    hosts = Hosts()
    joining = JoiningHosts(hosts)
    async with running(joining):
        joining.update([host("a")])
        joining.update([host("a", certificate="second")])
        await settled()
    assert hosts.calls == ["add a at https://one", "renew a"]
