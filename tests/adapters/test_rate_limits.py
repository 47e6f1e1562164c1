"""Headers that say what is left of a key's limits."""

from __future__ import annotations

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.rate_limits import RateLimit, openai_headers
from hostler.adapters.registry import load_adapters

LIMITS = [
    RateLimit(kind="requests", limit=60, remaining=59, reset_s=1.0),
    RateLimit(kind="tokens", limit=150_000, remaining=149_984, reset_s=360.2),
]


def test_every_protocol_has_the_headers_that_most_programs_read() -> None:
    for adapter in load_adapters():
        headers = dict(adapter.rate_limit_headers(LIMITS, now=0.0))
        assert headers["x-ratelimit-limit-requests"] == "60"
        assert headers["x-ratelimit-remaining-requests"] == "59"
        assert headers["x-ratelimit-reset-requests"] == "1s"
        assert headers["x-ratelimit-limit-tokens"] == "150000"
        assert headers["x-ratelimit-remaining-tokens"] == "149984"
        assert headers["x-ratelimit-reset-tokens"] == "6m0s"


def test_anthropics_protocol_has_its_own_as_well() -> None:
    headers = dict(AnthropicAdapter().rate_limit_headers(LIMITS, now=1_800_000_000.5))
    assert headers["anthropic-ratelimit-requests-limit"] == "60"
    assert headers["anthropic-ratelimit-requests-remaining"] == "59"
    assert headers["anthropic-ratelimit-requests-reset"] == "2027-01-15T08:00:02Z"
    assert headers["anthropic-ratelimit-tokens-remaining"] == "149984"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (7.66, "7.7s"), (60, "1m0s"), (3600, "1h0m0s"), (39_720, "11h2m0s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    limit = RateLimit(kind="tokens", limit=1, remaining=0, reset_s=seconds)
    assert dict(openai_headers([limit]))["x-ratelimit-reset-tokens"] == text
