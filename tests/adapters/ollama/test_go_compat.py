"""Times in Go's format."""

from __future__ import annotations

import pytest

from hostler.adapters.ollama.go_compat import format_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1970-01-01T00:00:00Z"), (1.5, "1970-01-01T00:00:01.5Z"), (float("inf"), "2318-01-01T00:00:00Z")],
)
def test_times_have_a_zone_and_no_trailing_zeros(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
