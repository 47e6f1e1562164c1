"""Requests and tokens in a minute: what is admitted, and when again."""

from __future__ import annotations

import pytest

from hostler.gateway.backend_settings import RateSettings
from hostler.gateway.backends.rate_limiter import RateLimiter


def test_requests_are_admitted_until_the_limit_and_again_a_minute_after_each() -> None:
    subject = RateLimiter(RateSettings(requests_per_minute=2))
    for now in (0.0, 10.0):
        assert subject.wait_s(now) == 0
        subject.begin(now, 0)
    assert subject.wait_s(20.0) == 40
    assert subject.wait_s(60.0) == 0
    subject.begin(60.0, 0)
    assert subject.wait_s(61.0) == 9


def test_tokens_count_as_estimated_until_the_answer_ends() -> None:
    subject = RateLimiter(RateSettings(tokens_per_minute=100))
    first, second = subject.begin(0.0, 60), subject.begin(5.0, 60)
    assert subject.wait_s(10.0) == 50  # with the first gone, 60 are left
    subject.end(first, 20)
    assert subject.wait_s(10.0) == 0
    subject.end(second, 500)
    assert subject.wait_s(10.0) == 55


@pytest.mark.parametrize(("requests", "tokens", "expected"), [(1, 10, 50.0), (None, 1000, 0.0), (None, None, 0.0)])
def test_the_longer_wait_counts(requests: int | None, tokens: int | None, expected: float) -> None:
    subject = RateLimiter(RateSettings(requests_per_minute=requests, tokens_per_minute=tokens))
    subject.begin(0.0, 20)
    assert subject.wait_s(10.0) == expected
