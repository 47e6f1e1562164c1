"""A gateway's identity over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.gateway.cluster.identity import Identity


def test_it_is_the_same_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "state" / "member"
    first = Identity(file)
    first.close()
    second = Identity(file)
    second.close()
    assert first.id == second.id
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_gateways_with_one_file_have_different_ones(tmp_path: Path) -> None:
    first, second = Identity(tmp_path / "member"), Identity(tmp_path / "member")
    assert first.id != second.id
    second.close()
    first.close()
    third = Identity(tmp_path / "member")
    third.close()
    assert third.id == first.id


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "member").write_bytes(b"\xff" * 100)
    first = Identity(tmp_path / "member")
    first.close()
    assert (tmp_path / "member").read_text().split()[0] == first.id


def test_a_copy_of_the_machine_has_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine, file = tmp_path / "machine-id", tmp_path / "member"

    def start() -> str:
        identity = Identity(file, machine)
        identity.close()
        return identity.id

    file.write_text("0123456789abcdef\n")  # of a release that did not know the machine
    machine.write_text("b5c0\n")
    assert start() == start() == "0123456789abcdef"
    assert "b5c0" not in file.read_text()
    machine.write_text("77aa\n")
    copy = start()
    assert copy == start() != "0123456789abcdef"
    assert caplog.text.count("was copied from another machine") == 1
    machine.write_text("")  # an image for containers has none
    assert start() == copy


def test_a_gateway_runs_where_it_cannot_keep_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Identity(tmp_path / "file" / "member").id != Identity(tmp_path / "file" / "member").id


def test_a_file_that_cannot_be_written_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    file = Path("/proc/self/oom_score_adj")  # of this process alone: another one may hold a lock of /dev/full
    assert Identity(file).id
    assert f"{file}: cannot be used" in caplog.text
