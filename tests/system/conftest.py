"""Fixtures for tests of the whole product on sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fakes.fake_openrouter import FakeOpenRouter, start_openrouter
from fakes.redis_server import RedisServer, redis_server
from system.cluster_programs import Cluster, running_cluster
from system.running_gateway import StartGateway, gateway_starter


@pytest.fixture
def start_gateway(tmp_path: Path) -> StartGateway:
    """See `gateway_starter`."""
    return gateway_starter(tmp_path)


@pytest.fixture
async def cloud() -> AsyncIterator[FakeOpenRouter]:
    """A scripted OpenRouter, for use as a cloud backend."""
    async with start_openrouter("cloud") as server:
        yield server


@pytest.fixture
async def lan() -> AsyncIterator[FakeOpenRouter]:
    """Another scripted server, for use as a local backend."""
    async with start_openrouter("lan") as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """The store of a cluster, for tests that `needs_redis` marks."""
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def cluster(tmp_path: Path, server: RedisServer) -> AsyncIterator[Cluster]:
    """A cluster without members yet."""
    async with running_cluster(tmp_path, server.url) as cluster:
        yield cluster
