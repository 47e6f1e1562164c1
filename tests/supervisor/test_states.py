"""The table of states and the arithmetic of pauses."""

from __future__ import annotations

from typing import get_args

import pytest

from hostler.supervisor.contract import State
from hostler.supervisor.states import TRANSITIONS, ImpossibleTransition, advance, after_failure, backoff_delay_s


def test_every_state_has_a_row_and_every_row_leads_somewhere() -> None:
    assert set(TRANSITIONS) == set(get_args(State))
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize("start", get_args(State))
def test_every_state_can_come_to_rest(start: State) -> None:
    reached, fresh = {start}, {start}
    while fresh:
        fresh = {state for known in fresh for state in TRANSITIONS[known]} - reached
        reached |= fresh
    assert "stopped" in reached


@pytest.mark.parametrize(
    ("current", "following"), [("stopped", "ready"), ("failed", "starting"), ("ready", "starting")]
)
def test_an_impossible_step_is_an_error(current: State, following: State) -> None:
    with pytest.raises(ImpossibleTransition, match=f"{current} to {following}"):
        advance(current, following)


def test_pauses_double_up_to_the_longest() -> None:
    assert [backoff_delay_s(failures, 1.0, 5.0) for failures in (0, 1, 2, 3, 4, 400)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_gives_up_at_the_last_allowed_failure() -> None:
    assert [after_failure(failures, 3) for failures in (1, 2, 3, 4)] == ["backoff", "backoff", "failed", "failed"]
