"""Fixtures for all tests: the event loop, flag files, and the real model."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import coverage
import pytest
from fakes.flag_file import FlagFile
from hypothesis import HealthCheck, settings

from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import fetch_sync
from hostler.profiles.sources import cache_directory
from hostler.profiles.store import demo_profiles

# A shell starts background jobs with SIGINT ignored, which the programs under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: The files that take longest, in seconds and mostly without a CPU. Where files run side by side they begin first, so that
#: none of them runs alone at the end.
LONGEST = [
    "test_three_machines.py",
    "test_chain_soak.py",
    "test_engine_lifecycle.py",
    "test_slot_cache.py",
    "test_reaper.py",
    "test_cli_logging.py",
    "test_cli_terminal.py",
]

# The time of an example depends more on the machine's load than on the code.
settings.register_profile("hostler", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hostler")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class LoopErrors(logging.Handler):
    """What the event loop reports of tasks and callbacks, for which Python has no warnings."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@pytest.fixture(autouse=True)
def loop_errors() -> Iterator[None]:
    """Fail a test during which a task's exception was never retrieved, a pending task destroyed, or a callback failed."""
    logger, handler = logging.getLogger("asyncio"), LoopErrors()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert handler.messages == []


@pytest.fixture
def flags(tmp_path: Path) -> Callable[[str], FlagFile]:
    """`flags("ready")` is a flag for scripted engines, not set yet."""
    folder = tmp_path / "flags"
    folder.mkdir()
    return lambda name: FlagFile(folder / name)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The model of the shipped profiles, downloaded into the user's cache on first use."""
    return fetch_sync(demo_profiles()[0], cache_directory(), lambda _: None, Cancellation())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files. Give tests with the real engine more time: a busy machine generates slowly."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if item.get_closest_marker("engine") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180))


def pytest_sessionfinish() -> None:
    """Save what coverage has measured, since pytest-xdist kills workers that take longer than 10 s to exit."""
    if (measuring := coverage.Coverage.current()) is not None:
        measuring.save()
