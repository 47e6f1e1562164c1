"""Measured speeds of a model's answers."""

from __future__ import annotations

import pytest

from hostler.adapters.canonical import Usage
from hostler.supervisor.scheduling.speed import ModelSpeed


def test_the_engines_own_timings_take_precedence() -> None:
    speed = ModelSpeed()
    speed.record(Usage(prompt_tokens=600, cached_tokens=100, completion_tokens=40), 2.0)
    assert (speed.tokens_per_s, speed.prompt_tokens_per_s, speed.answer_tokens) == (20.0, None, 40.0)
    speed = ModelSpeed()
    usage = Usage(
        prompt_tokens=600, cached_tokens=100, completion_tokens=40, completion_ms=1000.0, prompt_ms=500.0
    )  # fmt: skip
    speed.record(usage, 99.0)
    assert (speed.tokens_per_s, speed.prompt_tokens_per_s) == (40.0, 1000.0)


def test_later_answers_move_the_averages() -> None:
    speed = ModelSpeed()
    for tokens in (100, 200):
        speed.record(Usage(completion_tokens=tokens), 10.0)
    assert (speed.tokens_per_s, speed.answer_tokens) == (pytest.approx(12.0), pytest.approx(120.0))


def test_a_few_tokens_and_no_time_say_nothing() -> None:
    speed = ModelSpeed()
    speed.record(Usage(completion_tokens=3), 1.0)
    speed.record(Usage(completion_tokens=30), 0.0)
    speed.record(Usage(), 1.0)
    assert speed.tokens_per_s is None
