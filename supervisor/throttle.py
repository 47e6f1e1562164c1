"""Slows down whoever guesses tokens. Counts addresses; refuses nobody itself."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class Throttle:
    """After `limit` wrong tokens within `window_s` an address waits. At most `remember` addresses are remembered."""

    def __init__(
        self, *, limit: int = 50, window_s: float = 60.0, remember: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._limit = limit
        self._window_s = window_s
        self._remember = remember
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def failed(self, address: str) -> float:
        """Count a failure. Returns the seconds to wait, 0 while within the limit."""
        now = self._clock()
        since, count = self._failures.pop(address, (now, 0))
        if now - since > self._window_s:
            since, count = now, 0
        self._failures[address] = (since, count + 1)
        if len(self._failures) > self._remember:
            self._failures.popitem(last=False)
        return 0.0 if count < self._limit else self._window_s - (now - since)
