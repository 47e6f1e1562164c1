"""What every test shares: the event loop that coroutines run on, and the real model."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.gate import Gate
from hypothesis import HealthCheck, settings

from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import fetch_sync
from hostler.profiles.sources import cache_directory
from hostler.profiles.store import demo_profiles

# Started in the background by a shell, Ctrl-C would mean nothing to us, and by inheritance nothing to what is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("hostler", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hostler")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def gates(tmp_path: Path) -> Callable[[str], Gate]:
    """`gates("ready")` is a closed gate for scripted engines."""
    folder = tmp_path / "gates"
    folder.mkdir()
    return lambda name: Gate(folder / name)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The file of the shipped profiles, fetched the first time as the product does it, into the user's own cache."""
    return fetch_sync(demo_profiles()[0], cache_directory(), lambda _: None, Cancellation())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A busy machine may take long over a real model's words."""
    for item in items:
        if item.get_closest_marker("engine") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180))
