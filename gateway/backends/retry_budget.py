"""Limits the gateway's retries, so that they do not overload a failing backend."""

from __future__ import annotations

from collections import deque

import msgspec


class RetryRules(msgspec.Struct, frozen=True, kw_only=True):
    """Retries are limited to `share` of the requests of the last `window_s` seconds, but `per_second` are always
    allowed."""

    share: float = 0.1
    per_second: int = 2
    window_s: int = 10


class RetryBudget:
    """Counts requests and retries, in constant memory and time: by whole seconds."""

    def __init__(self, rules: RetryRules) -> None:
        self._rules = rules
        self._seconds: deque[list[int]] = deque(maxlen=rules.window_s)  # second, requests, retries
        self._last: deque[float] = deque(maxlen=max(1, rules.per_second))

    def count_request(self, now: float) -> None:
        """A request arrived (not a retry of one)."""
        self._count(now, requests=1)

    def try_retry(self, now: float) -> bool:
        """Whether a retry is allowed; if so, it is counted."""
        since = int(now) - self._rules.window_s
        recent = [(requests, retries) for second, requests, retries in self._seconds if second > since]
        earned = self._rules.share * sum(requests for requests, _ in recent)
        few = self._rules.per_second > 0 and (len(self._last) < self._rules.per_second or now - self._last[0] >= 1.0)
        if not few and sum(retries for _, retries in recent) + 1 > earned:
            return False
        self._last.append(now)
        self._count(now, retries=1)
        return True

    def _count(self, now: float, *, requests: int = 0, retries: int = 0) -> None:
        second = int(now)
        seconds = self._seconds
        if seconds and seconds[-1][0] == second:
            seconds[-1][1] += requests
            seconds[-1][2] += retries
        else:
            seconds.append([second, requests, retries])
