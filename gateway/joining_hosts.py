"""Hosts that join and leave while a gateway runs, in each of its processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import anyio

from hostler.gateway.joined_host import JoinedHost

logger = logging.getLogger(__name__)


class HostSet(Protocol):
    """Where hosts are used: see `ServingComponents`."""

    @property
    def joined(self) -> Mapping[str, JoinedHost]: ...

    def add_host(self, joined: JoinedHost) -> None: ...

    def renew_certificate(self, joined: JoinedHost) -> None: ...

    async def remove_host(self, name: str) -> None: ...


def _ignore(name: str) -> None:
    return None


class JoiningHosts:
    """Has `hosts` use those of the last `update`. `on_added` is called with the name of each new one. `run` until cancelled.

    New hosts are used at once. One that has left, or has moved to another address, is removed once the requests that it
    may serve have ended; at its new address it is used after that.
    """

    def __init__(self, hosts: HostSet, on_added: Callable[[str], None] = _ignore) -> None:
        self._hosts = hosts
        self._on_added = on_added
        self._wanted: dict[str, JoinedHost] = {}
        self._leaving: set[str] = set()
        self._changed = anyio.Event()

    @property
    def wanted(self) -> tuple[JoinedHost, ...]:
        """The hosts of the last update."""
        return tuple(self._wanted.values())

    def update(self, hosts: Iterable[JoinedHost]) -> None:
        """These hosts have joined, and no others."""
        self._wanted = {host.name: host for host in hosts}
        for name, host in self._wanted.items():
            if name in self._leaving:
                continue
            known = self._hosts.joined.get(name)
            if known is None:
                self._hosts.add_host(host)
                self._on_added(name)
                logger.info("host %s joined (%s)", name, host.url)
            elif known != host and known.is_at(host):
                self._hosts.renew_certificate(host)
        self._changed.set()

    async def run(self) -> None:
        """Remove hosts that have left, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                for name, host in self._hosts.joined.items():
                    wanted = self._wanted.get(name)
                    if name not in self._leaving and (wanted is None or not wanted.is_at(host)):
                        self._leaving.add(name)
                        tasks.start_soon(self._remove, name)

    async def _remove(self, name: str) -> None:
        logger.info("host %s left", name)
        await self._hosts.remove_host(name)
        self._leaving.discard(name)
        self.update(self._wanted.values())
