"""What is left of a key's limits, in the headers that clients read before they send more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import msgspec


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on `requests` or `tokens`: how many are left, and the seconds until all are available again."""

    kind: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_s: float


def openai_headers(limits: Iterable[RateLimit]) -> list[tuple[str, str]]:
    """`x-ratelimit-*`, which most programs read, whatever the protocol."""
    headers = []
    for each in limits:
        headers += [
            (f"x-ratelimit-limit-{each.kind}", str(each.limit)),
            (f"x-ratelimit-remaining-{each.kind}", str(each.remaining)),
            (f"x-ratelimit-reset-{each.kind}", _duration(each.reset_s)),
        ]
    return headers


def anthropic_headers(limits: Iterable[RateLimit], now: float) -> list[tuple[str, str]]:
    """`anthropic-ratelimit-*`. `now` is in seconds since the epoch."""
    headers = []
    for each in limits:
        reset = datetime.fromtimestamp(int(now + each.reset_s + 0.999), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        headers += [
            (f"anthropic-ratelimit-{each.kind}-limit", str(each.limit)),
            (f"anthropic-ratelimit-{each.kind}-remaining", str(each.remaining)),
            (f"anthropic-ratelimit-{each.kind}-reset", reset),
        ]
    return headers


def _duration(seconds: float) -> str:
    """A duration as Go and OpenAI write it: `20ms`, `59.5s`, `6m0s`, `11h2m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 1):g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
