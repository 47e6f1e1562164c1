"""How many requests and tokens a backend gets in a minute. Decides only: the time is an argument."""

from __future__ import annotations

from collections import deque

import msgspec

from hostler.gateway.backend_settings import RateSettings

_MINUTE_S = 60.0


class RateUse(msgspec.Struct, eq=False):
    """One request that counts: when it began, and its tokens, as estimated until it ends."""

    at: float
    tokens: int


class RateLimiter:
    """Counts the requests of the last minute at one backend. A request counts from its beginning, whatever its end.

    A request is admitted as long as something of each limit is left, so that one may exceed the limit of tokens.
    """

    def __init__(self, limits: RateSettings) -> None:
        self._limits = limits
        self._uses: deque[RateUse] = deque()

    def wait_s(self, now: float) -> float:
        """Seconds until another request is admitted, 0 if one is now."""
        while self._uses and now - self._uses[0].at >= _MINUTE_S:
            self._uses.popleft()
        requests, tokens = self._limits.requests_per_minute, self._limits.tokens_per_minute
        wait_s = 0.0
        if requests is not None and len(self._uses) >= requests:
            wait_s = self._uses[len(self._uses) - requests].at + _MINUTE_S - now
        if tokens is not None and (used := sum(use.tokens for use in self._uses)) >= tokens:
            for use in self._uses:
                used -= use.tokens
                if used < tokens:
                    return max(wait_s, use.at + _MINUTE_S - now)
        return wait_s

    def begin(self, now: float, tokens: int) -> RateUse:
        """Count a request that will probably use so many tokens."""
        use = RateUse(at=now, tokens=max(0, tokens))
        self._uses.append(use)
        return use

    def end(self, use: RateUse, tokens: int) -> None:
        """The request has used so many tokens."""
        use.tokens = max(0, tokens)
