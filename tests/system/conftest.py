"""Fixtures for tests of the whole product on sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.fake_openrouter import FakeOpenRouter, start_openrouter
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
