"""The spending tracker: kept on disk, reset at midnight, never in the way of an answer."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from hostler.gateway.backends.cost import SpendingTracker, default_file

NOON = datetime.datetime(2025, 3, 14, 12).timestamp()
DAY = 86400.0


class Wall:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def test_adds_up_and_stops_at_the_limit(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    subject.add("cloud", 0.6)
    assert not subject.limit_reached
    subject.add("other", 0.4)
    assert subject.limit_reached
    assert subject.today == pytest.approx(1.0)


def test_without_a_limit_it_is_never_reached(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", None, Wall())
    subject.add("cloud", 1e6)
    assert not subject.limit_reached


def test_costs_survive_a_restart_but_not_midnight(tmp_path: Path) -> None:
    wall = Wall()
    SpendingTracker(tmp_path / "deep" / "spent", 1.0, wall).add("cloud", 1.0)
    again = SpendingTracker(tmp_path / "deep" / "spent", 1.0, wall)
    assert again.limit_reached
    assert again.resumes_in() == pytest.approx(DAY / 2)
    wall.now += DAY
    assert not again.limit_reached
    assert again.today == 0


def test_an_answer_of_unknown_cost_counts_as_the_days_mean(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    subject.add("cloud", None)
    assert subject.today == 0
    for cost in (0.2, 0.4, None):
        subject.add("cloud", cost)
    assert subject.today == pytest.approx(0.9)


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_an_impossible_cost_is_not_counted(tmp_path: Path, cost: float) -> None:
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    subject.add("cloud", cost)
    assert subject.today == 0


def test_a_damaged_file_is_logged_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spent").write_bytes(b"{")
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    subject.add("cloud", 0.5)
    assert "cannot be read" in caplog.text
    assert SpendingTracker(tmp_path / "spent", 1.0, Wall()).today == 0.5


def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    subject = SpendingTracker(tmp_path / "file" / "spent", 1.0, Wall())
    caplog.clear()
    subject.add("cloud", 0.5)
    subject.add("cloud", 0.5)
    assert subject.limit_reached
    assert caplog.text.count("cannot be written") == 1


def test_the_default_file_is_in_the_state_directory() -> None:
    assert default_file({"STATE_DIRECTORY": "/var/lib/hostler:/x"}) == Path("/var/lib/hostler/spending.json")
    assert default_file({"XDG_STATE_HOME": "/home/u/.s"}) == Path("/home/u/.s/hostler/spending.json")


def test_a_binary_file_starts_the_day_at_zero(tmp_path: Path) -> None:
    (tmp_path / "spent").write_bytes(b'{"day":"\xff"}')
    assert SpendingTracker(tmp_path / "spent", 1.0, Wall()).today == 0
