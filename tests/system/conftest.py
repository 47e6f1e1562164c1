"""The whole product on sockets."""

from __future__ import annotations

from pathlib import Path

import pytest
from system.house import OpenHouse, house_in


@pytest.fixture
def open_house(tmp_path: Path) -> OpenHouse:
    """See `house_in`."""
    return house_in(tmp_path)
