"""The host cache: profiles survive a restart, and disk errors raise nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.gateway.host_cache import HostCache
from hostler.supervisor.contract import ProfileInfo

PROFILES = (ProfileInfo(name="m", aliases=("nick",), context=4096, local_only=True),)


def test_profiles_survive_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "state" / "machines.json"
    subject = HostCache(file)
    subject.update("pc", PROFILES)
    subject.update("laptop", ())
    again = HostCache(file)
    assert again.profiles("pc") == PROFILES
    assert again.profiles("unknown") == ()


def test_unchanged_profiles_are_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "machines.json"
    subject = HostCache(file)
    subject.update("pc", PROFILES)
    file.unlink()
    subject.update("pc", PROFILES)
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    subject = HostCache(tmp_path / "file" / "machines.json")
    caplog.clear()
    subject.update("pc", PROFILES)
    subject.update("pc", ())
    assert subject.profiles("pc") == ()
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("content", [b"{", b'{"hosts":{"pc":[{"name":1}]}}', b"\xff"])
def test_a_damaged_file_is_logged_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (tmp_path / "machines.json").write_bytes(content)
    subject = HostCache(tmp_path / "machines.json")
    assert subject.profiles("pc") == ()
    assert "cannot be read" in caplog.text
