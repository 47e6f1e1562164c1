"""Figures of the history in buckets of time: counts, medians and longest waits. Pure."""

from __future__ import annotations

import msgspec


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a span of time; `None` where nothing happened. Times in seconds, memory in bytes."""

    at: float
    requests: int = 0
    failed: int = 0
    first_token_s: float | None = None
    first_token_p95_s: float | None = None
    tokens_per_s: float | None = None
    queue_s: float | None = None
    switches: int = 0
    switch_s: float | None = None
    memory: int | None = None
    waiting: int | None = None


class RequestFigures(msgspec.Struct):
    """The fields of a request that buckets are computed from."""

    at: float
    seconds: float
    outcome: str
    queue_s: float = 0.0
    switch_s: float = 0.0
    first_token_s: float | None = None
    completion_tokens: int = 0


def bucket_of(
    at: float, requests: list[RequestFigures], switches: list[float], *, memory: int | None, waiting: int | None
) -> Bucket:
    """The figures of the requests and of the seconds that switches took."""
    first_tokens = [each.first_token_s for each in requests if each.first_token_s is not None]
    speeds = [
        (each.completion_tokens - 1) / (each.seconds - each.first_token_s)
        for each in requests
        if each.first_token_s is not None and each.completion_tokens > 1 and each.seconds > each.first_token_s
    ]
    return Bucket(
        at=at,
        requests=len(requests),
        failed=sum(each.outcome in ("failed", "broken") for each in requests),
        first_token_s=_percentile(first_tokens, 0.5),
        first_token_p95_s=_percentile(first_tokens, 0.95),
        tokens_per_s=_percentile(speeds, 0.5),
        queue_s=max((each.queue_s for each in requests), default=None),
        switches=len(switches),
        switch_s=max(switches, default=None),
        memory=memory,
        waiting=waiting,
    )


def _percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    values.sort()
    return round(values[min(len(values) - 1, int(share * len(values)))], 4)
