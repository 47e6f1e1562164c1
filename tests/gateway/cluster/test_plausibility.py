"""What was received from the store is looked at before it is used."""

from __future__ import annotations

import msgspec
import pytest

from hostler.gateway.cluster.plausibility import are_plausible, is_past, is_plausible


class Inner(msgspec.Struct):
    seconds: float = 0.0


class Outer(msgspec.Struct):
    text: str = ""
    number: int = 0
    inner: tuple[Inner, ...] = ()
    missing: float | None = None


@pytest.mark.parametrize(
    ("value", "plausible"),
    [
        (Outer(), True),
        (Outer("x" * 2000, 10**12, (Inner(1.0),)), True),
        (Outer("x" * 2001), False),
        (Outer(number=10**400), False),
        (Outer(number=-1), False),
        (Outer(inner=(Inner(), Inner(float("inf")))), False),
        (Outer(inner=(Inner(float("nan")),)), False),
    ],
)
def test_texts_are_short_and_numbers_possible(value: Outer, plausible: bool) -> None:
    assert is_plausible(value) is plausible
    assert are_plausible([None, True, value]) is plausible


@pytest.mark.parametrize(("at", "past"), [(0.0, True), (1000.0, True), (2000.0, True), (-1.0, False), (1e6, False)])
def test_a_time_is_past_by_a_clock_that_is_not_quite_right(at: float, past: bool) -> None:
    assert is_past(at, 1000.0) is past
