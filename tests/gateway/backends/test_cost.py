"""The spending tracker: kept on disk, reset at midnight, never in the way of an answer."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from hostler.adapters.canonical import Usage
from hostler.gateway.backend_settings import PriceSettings
from hostler.gateway.backends.cost import SpendingTracker, cost_of, spending_file
from hostler.gateway.gateway_settings import SpendingSettings

NOON = datetime.datetime(2025, 3, 14, 12).timestamp()
DAY = 86400.0


def spend(tracker: SpendingTracker, backend: str, cost: float | None, *, answered: bool = True) -> None:
    """One request from its reservation to its end."""
    reserved = tracker.estimate(backend, "m", None, 100)
    assert tracker.reserve(reserved)
    tracker.settle(reserved, cost, answered=answered)


class Wall:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def test_adds_up_and_stops_at_the_limit(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    spend(subject, "cloud", 0.6)
    assert not subject.limit_reached
    spend(subject, "other", 0.4)
    assert subject.limit_reached
    assert subject.today == pytest.approx(1.0)


def test_without_a_limit_it_is_never_reached(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", None, Wall())
    spend(subject, "cloud", 1e6)
    assert not subject.limit_reached


def test_costs_survive_a_restart_but_not_midnight(tmp_path: Path) -> None:
    wall = Wall()
    spend(SpendingTracker(tmp_path / "deep" / "spent", 1.0, wall), "cloud", 1.0)
    again = SpendingTracker(tmp_path / "deep" / "spent", 1.0, wall)
    assert again.limit_reached
    assert again.resumes_in() == pytest.approx(DAY / 2)
    wall.now += DAY
    assert not again.limit_reached
    assert again.today == 0


def test_an_answer_of_unknown_cost_counts_as_the_days_mean(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 100.0, Wall())
    for cost in (0.2, 0.4, *[None] * 40):
        spend(subject, "cloud", cost)
    assert subject.today == pytest.approx(42 * 0.3)


def test_an_answer_of_unknown_cost_is_never_free(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 100.0, Wall())
    for _ in range(40):
        spend(subject, "cloud", None)
    assert 0.1 < subject.today < 10


def test_an_attempt_without_an_answer_costs_nothing(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    spend(subject, "cloud", None, answered=False)
    assert subject.today == 0


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf"), 1e300])
def test_an_impossible_cost_is_not_believed(cost: float) -> None:
    usage, price = Usage(prompt_tokens=1_000_000, cost=cost), PriceSettings(input=2.0)
    assert cost_of(usage, None, body=b"12345678", segments=1) is None
    assert cost_of(usage, price, body=b"12345678", segments=1) == 2.0


def test_many_at_once_stay_within_the_limit(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 0.5, Wall())
    # Nothing is known of the first one, so it is alone.
    first = [subject.estimate("cloud", "m", None, 100) for _ in range(60)]
    allowed = [each for each in first if subject.reserve(each)]
    assert len(allowed) == 1
    subject.settle(allowed[0], 0.2)
    later = [subject.estimate("cloud", "m", None, 100) for _ in range(60)]
    allowed = [each for each in later if subject.reserve(each)]
    assert len(allowed) == 1
    assert not subject.exhausted_for(later[0])
    subject.settle(allowed[0], 0.2)
    assert subject.exhausted_for(later[0])
    assert not subject.limit_reached
    assert subject.today == pytest.approx(0.4)


def test_a_reservation_is_settled_once(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    reserved = subject.estimate("cloud", "m", None, 100)
    assert subject.reserve(reserved)
    for _ in range(3):
        subject.settle(reserved, 0.2)
    assert subject.today == pytest.approx(0.2)


def test_what_was_reserved_at_a_crash_counts_as_spent(tmp_path: Path) -> None:
    before = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    spend(before, "cloud", 0.3)
    assert before.reserve(before.estimate("cloud", "m", None, 100))
    assert before.today == pytest.approx(0.3)
    after = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    assert after.today == pytest.approx(0.6)
    spend(after, "cloud", 0.1)
    assert SpendingTracker(tmp_path / "spent", 1.0, Wall()).today == pytest.approx(0.7)


def test_a_long_prompt_is_reserved_by_its_price(tmp_path: Path) -> None:
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    spend(subject, "cloud", 0.01)
    price = PriceSettings(input=3.0)
    assert subject.reserve(subject.estimate("cloud", "m", price, 4_000))
    assert not subject.reserve(subject.estimate("cloud", "m", price, 4_000_000))


def test_a_damaged_file_is_logged_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spent").write_bytes(b"{")
    subject = SpendingTracker(tmp_path / "spent", 1.0, Wall())
    spend(subject, "cloud", 0.5)
    assert "cannot be read" in caplog.text
    assert SpendingTracker(tmp_path / "spent", 1.0, Wall()).today == 0.5


def test_a_file_that_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    subject = SpendingTracker(tmp_path / "file" / "spent", 1.0, Wall())
    caplog.clear()
    spend(subject, "cloud", 0.5)
    spend(subject, "cloud", 0.5)
    assert subject.limit_reached
    assert caplog.text.count("cannot be written") == 1


def test_the_default_file_is_in_the_state_directory() -> None:
    assert spending_file(SpendingSettings(file="/a/b.json")) == Path("/a/b.json")
    assert spending_file(SpendingSettings(), {"STATE_DIRECTORY": "/var/lib/hostler:/x"}) == Path(
        "/var/lib/hostler/spending.json"
    )
    assert spending_file(SpendingSettings(), {"XDG_STATE_HOME": "/home/u/.s"}) == Path(
        "/home/u/.s/hostler/spending.json"
    )


def test_a_binary_file_starts_the_day_at_zero(tmp_path: Path) -> None:
    (tmp_path / "spent").write_bytes(b'{"day":"\xff"}')
    assert SpendingTracker(tmp_path / "spent", 1.0, Wall()).today == 0
