"""The whole product on sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.openrouter import Router, open_router
from system.house import OpenHouse, house_in


@pytest.fixture
def open_house(tmp_path: Path) -> OpenHouse:
    """See `house_in`."""
    return house_in(tmp_path)


@pytest.fixture
async def cloud() -> AsyncIterator[Router]:
    """A server that speaks OpenAI's protocol, and misbehaves as it is told to."""
    async with open_router("cloud") as router:
        yield router


@pytest.fixture
async def box() -> AsyncIterator[Router]:
    """Another one."""
    async with open_router("box") as router:
        yield router
