"""A gateway's connection to a cluster's store, with messages to the others."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from fakes.store_client import make_store, running, until

from hostler.gateway.cluster.announcements import Announcements
from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.store import Script


class ClusterMember:
    """Nothing runs before `running`, so that a test can add listeners."""

    def __init__(self, url: str, name: str, scripts: Sequence[Script] = (), *, token: str | None = "secret") -> None:
        self.name = name
        self.store = make_store(url, scripts)
        self.signer = Signer(token, "home")
        self.announcements = Announcements(self.store, self.signer, name)
        self.wall = time.time


@asynccontextmanager
async def members_running(*members: ClusterMember) -> AsyncIterator[None]:
    """Run the connections until the context ends; they are there at its beginning."""
    runs = (run for each in members for run in (each.store.run, each.announcements.run))
    async with running(*runs):
        await until(lambda: all(each.store.connected for each in members))
        yield


class Shared(Protocol):
    """What gateways share."""

    async def run(self) -> None: ...


class SharingGateway(ClusterMember):
    """A gateway that shares something."""

    shared: Shared


@asynccontextmanager
async def gateways_running(*gateways: SharingGateway) -> AsyncIterator[None]:
    """Run the connections and what is shared until the context ends."""
    async with running(*(each.shared.run for each in gateways)), members_running(*gateways):
        yield
