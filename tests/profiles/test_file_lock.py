"""Locks between processes, as this system and as Windows have them."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from hostler.profiles.file_lock import lock_file


def test_a_locked_file_is_locked_for_others_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as one, path.open("wb") as other:
        lock_file(one.fileno())
        with pytest.raises(BlockingIOError):
            lock_file(other.fileno())
        one.close()
        lock_file(other.fileno(), wait=True)


def test_windows_locks_a_byte_behind_the_file_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [OSError("locked"), OSError("locked"), None]
    places: list[int] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        import os

        places.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        if (error := answers.pop(0)) is not None:
            raise error

    msvcrt = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "win32")
    with (tmp_path / "lock").open("w+b") as file:
        file.write(b"text")
        file.flush()
        with pytest.raises(BlockingIOError, match="another process"):
            lock_file(file.fileno())
        lock_file(file.fileno(), wait=True)
        assert file.tell() == 4
    assert places == [0x7FFF_FFFF] * 3
