"""Names of gateways that may be away."""

from __future__ import annotations

from pathlib import Path

from hostler.gateway.cluster.gateway_names import GatewayNames
from hostler.gateway.cluster.membership import Member


def member(number: int) -> Member:
    return Member(id=f"id{number}", name=f"gateway {number}", version="1")


def test_names_are_known_after_a_restart(tmp_path: Path) -> None:
    GatewayNames(tmp_path / "names.json").add([member(1), member(2)])
    names = GatewayNames(tmp_path / "names.json")
    assert (names.find("id1"), names.find("id3")) == ("gateway 1", None)


def test_those_that_came_last_are_kept(tmp_path: Path) -> None:
    names = GatewayNames(tmp_path / "names.json")
    names.add(member(number) for number in range(300))
    assert (names.find("id99"), names.find("id100")) == (None, "gateway 100")


def test_those_that_are_there_are_not_the_first_to_be_forgotten(tmp_path: Path) -> None:
    names = GatewayNames(tmp_path / "names.json")
    names.add(member(number) for number in range(200))
    names.add([member(0), member(200)])
    assert [names.find(f"id{number}") for number in (0, 1, 200)] == ["gateway 0", None, "gateway 200"]


def test_without_anything_new_nothing_is_written(tmp_path: Path) -> None:
    names = GatewayNames(tmp_path / "names.json")
    names.add([member(1)])
    (tmp_path / "names.json").unlink()
    names.add([member(1)])
    assert not (tmp_path / "names.json").exists()
