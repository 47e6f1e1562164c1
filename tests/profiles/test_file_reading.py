"""Files are read whole, within a limit, and nothing that may have no end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostler.profiles.file_reading import FileTooLarge, home_path, read_limited, real_path


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_limited(file, 5) == b"12345"
    with pytest.raises(FileTooLarge, match="larger than 4 bytes"):
        read_limited(file, 4)
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / "none", 4)


def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(FileTooLarge, match="not a regular file"):
            read_limited(path, 10)


def test_a_link_that_leads_back_to_itself_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("there")
    assert real_path(tmp_path / "loop").name == "loop"
    assert real_path(tmp_path / "link") == (tmp_path / "there").resolve()


def test_the_home_of_an_unknown_user_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert home_path("~/x") == tmp_path / "x"
    assert home_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
