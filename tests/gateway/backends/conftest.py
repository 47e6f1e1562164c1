"""The transport under test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hostler.gateway.backends.http_transport import LanTransport


@pytest.fixture
async def transport() -> AsyncIterator[LanTransport]:
    transport = LanTransport()
    yield transport
    await transport.aclose()
