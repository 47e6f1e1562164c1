"""Folders for engines that are being installed: whatever ends the command, nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostler.supervisor.engine_staging import remove_abandoned, remove_build, staging_folder

_HOLDER = """
import sys, pathlib
from hostler.supervisor.engine_staging import staging_folder
with staging_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "part").write_bytes(b"x")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def left(engines: Path) -> list[str]:
    return sorted(each.name for each in engines.iterdir())


def test_a_folder_goes_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path) as folder:
        (folder / "part").write_bytes(b"x")
        raise KeyboardInterrupt
    assert left(tmp_path) == []


def test_a_folder_of_a_killed_command_is_removed_by_the_next_one(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        with staging_folder(tmp_path) as folder:
            assert left(tmp_path) == sorted((name, folder.name)), "that of a running command stays"
        holder.kill()
        holder.wait()
    assert left(tmp_path) == [name]
    with staging_folder(tmp_path) as folder:
        assert left(tmp_path) == [folder.name]


def test_a_folder_that_is_just_being_made_stays(tmp_path: Path) -> None:
    for name, age_s in ((".new-old", 600), (".new-young", 0), (".own", 600)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    remove_abandoned(tmp_path)
    assert left(tmp_path) == [".new-young", ".own"]


def test_a_build_is_removed_with_all_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "one/bin").mkdir(parents=True)
    (tmp_path / "one/bin/llama-server").write_bytes(b"x")
    (tmp_path / "two").mkdir()
    remove_build(tmp_path, "one")
    assert left(tmp_path) == ["two"]
    with pytest.raises(FileNotFoundError):
        remove_build(tmp_path, "one")
    assert left(tmp_path) == ["two"]
