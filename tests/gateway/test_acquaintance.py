"""What machines had when they were last heard of: kept on disk, and never in anybody's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.gateway.host_cache import HostCache
from hostler.supervisor.contract import ProfileInfo

HAS = (ProfileInfo(name="m", aliases=("nick",), context=4096, local_only=True),)


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "state" / "machines.json"
    subject = HostCache(file)
    subject.update("pc", HAS)
    subject.update("laptop", ())
    again = HostCache(file)
    assert again.profiles("pc") == HAS
    assert again.profiles("stranger") == ()


def test_what_is_known_already_is_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "machines.json"
    subject = HostCache(file)
    subject.update("pc", HAS)
    file.unlink()
    subject.update("pc", HAS)
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    subject = HostCache(tmp_path / "file" / "machines.json")
    caplog.clear()
    subject.update("pc", HAS)
    subject.update("pc", ())
    assert subject.profiles("pc") == ()
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("content", [b"{", b'{"hosts":{"pc":[{"name":1}]}}', b"\xff"])
def test_a_damaged_file_is_reported_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "machines.json").write_bytes(content)
    subject = HostCache(tmp_path / "machines.json")
    assert subject.profiles("pc") == ()
    assert "cannot be read" in caplog.text
