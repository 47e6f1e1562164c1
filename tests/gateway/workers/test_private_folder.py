"""The folder of the processes' Unix sockets, and what killed processes have left of theirs."""

from __future__ import annotations

import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.gateway.workers.private_folder import private_folder

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_it_is_this_users_alone_and_removed_at_the_end(temporary: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "main").touch()
    assert list(temporary.iterdir()) == []


def test_those_of_killed_processes_are_removed_and_those_in_use_stay(temporary: Path) -> None:
    with private_folder() as used, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(used / "main"))
        listening.listen()
        left = Path(tempfile.mkdtemp(prefix="hostler-workers-"))
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(left / "main"))
        with private_folder() as own:
            assert set(temporary.iterdir()) == {used, own}


def test_where_paths_are_too_long_for_sockets_it_is_elsewhere(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / ("x" * 80)))
    with private_folder() as folder:
        assert folder.parent == Path("/tmp")
