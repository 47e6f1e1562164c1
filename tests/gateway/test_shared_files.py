"""Where a member keeps what its cluster shares."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.shared_files import Refused, host_names, one_line, shared_file, write_shared

CLUSTER = ClusterSettings(store="redis://store", name="home", token_file="/x")


def test_each_cluster_has_its_files() -> None:
    assert shared_file(CLUSTER, "keys", Path) == Path("cluster-home-keys")
    assert shared_file(CLUSTER, "profiles", Path) == Path("cluster-home-profiles.yaml")


def test_members_that_take_nothing_have_none() -> None:
    assert shared_file(None, "keys", Path) is None
    assert shared_file(ClusterSettings(store="redis://store"), "keys", Path) is None  # without a token
    assert shared_file(ClusterSettings(store="redis://store", token="x", accept=("profiles",)), "keys", Path) is None


def test_a_host_is_called_as_configured_else_like_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-1.lan")
    assert host_names(CLUSTER) == ("gpu-1.lan", "gpu-1")
    assert host_names(ClusterSettings(store="redis://store", member="attic")) == ("attic",)


def test_a_file_with_the_same_text_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    write_shared(file, "text")
    before = file.stat().st_mtime_ns, file.stat().st_ino
    write_shared(file, "text")
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    write_shared(file, "other")
    assert file.read_text() == "other"
    file.unlink()
    file.mkdir()
    with pytest.raises(Refused, match="cannot be written"):
        write_shared(file, "text")


def test_reasons_are_one_line() -> None:
    assert one_line(" a\n  b\tc ") == "a b c"
    assert len(one_line("x" * 10_000)) == 500
