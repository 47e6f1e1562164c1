"""Fixtures for tests of what attackers try."""

from __future__ import annotations

from pathlib import Path

import pytest
from system.running_gateway import StartGateway, gateway_starter


@pytest.fixture
def start_gateway(tmp_path: Path) -> StartGateway:
    """See `gateway_starter`."""
    return gateway_starter(tmp_path)
