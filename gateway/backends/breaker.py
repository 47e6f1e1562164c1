"""A circuit breaker for one thing that may fail: when it may be asked, decided from how the last calls went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

BreakerState = Literal["closed", "open", "half_open"]


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True):
    """Opens after `failures` in a row, for `open_s`, twice as long each time up to `max_open_s`; closes after `successes`
    probes in a row. `jitter` is the share of the time that is left to chance (it only shortens)."""

    failures: int = 3
    successes: int = 2
    open_s: float = 5.0
    max_open_s: float = 300.0
    jitter: float = 0.2


class Permit(msgspec.Struct, frozen=True):
    """The right to make one call. Give it back exactly once: `success`, `failure` or `release`."""

    era: int
    probe: bool


class Breaker:
    """State by state: `closed` lets every call through · `open` none, until its time is over · `half_open` one at a time.

    `usual` is the permit that nearly every call gets, and that the rest of a call has which was reported as a success: it is no
    probe. `changed` is told the state before and after each change. A call that began before the state changed says nothing about the state after it: its result is not counted.
    """

    def __init__(
        self,
        rules: BreakerRules,
        random: Callable[[], float],
        changed: Callable[[BreakerState, BreakerState], None] | None = None,
    ) -> None:
        self._rules = rules
        self._random = random
        self._changed = changed
        self._state: BreakerState = "closed"
        self._era = 0
        self.usual = Permit(0, False)
        self._failures = 0
        self._successes = 0
        self._opened = 0
        self._open_until = 0.0
        self._cool_until = 0.0
        self._probing = False

    def state(self, now: float) -> BreakerState:
        """What it is now: an open breaker whose time is over is `half_open`."""
        return "half_open" if self._state == "open" and now >= self._open_until else self._state

    def allows(self, now: float) -> bool:
        """Whether `acquire` would give a permit. Changes nothing."""
        if now < self._cool_until:
            return False
        return self._state == "closed" or (self.state(now) == "half_open" and not self._probing)

    def acquire(self, now: float) -> Permit | None:
        """The right to make a call now, or `None`."""
        if self._state == "closed" and now >= self._cool_until:
            return self.usual
        if not self.allows(now):
            return None
        if self._state == "open":
            self._become("half_open")
        self._probing = self._state == "half_open"
        return Permit(self._era, True) if self._probing else self.usual

    def success(self, permit: Permit, now: float) -> None:
        """The call went well."""
        if permit is not self.usual and not self._give_back(permit):
            return
        self._failures = 0
        self._successes += 1
        if self._state == "half_open" and self._successes >= self._rules.successes:
            self.close()

    def failure(self, permit: Permit, now: float, *, at_once: bool = False) -> None:
        """The call failed. `at_once` opens without waiting for more (something else says that it is down, too)."""
        if not self._give_back(permit):
            return
        self._failures += 1
        if at_once or self._state == "half_open" or self._failures >= self._rules.failures:
            span = min(self._rules.max_open_s, self._rules.open_s * 2.0 ** min(self._opened, 60))
            self._opened += 1
            self._become("open")
            self._open_until = now + span * (1.0 - self._rules.jitter * self._random())

    def release(self, permit: Permit) -> None:
        """The call says nothing: the client left, the request was wrong, the model is still loading."""
        self._give_back(permit)

    def cool(self, until: float) -> None:
        """The other side asked to be left alone until then. This is no failure."""
        self._cool_until = max(self._cool_until, until)

    def trip(self, now: float, for_s: float) -> None:
        """Trying again makes no sense for so long (a key was refused, the credit is used up)."""
        self._become("open")
        self._open_until = now + for_s

    def close(self) -> None:
        """It works: a background probe answered, or somebody mended it."""
        self._opened = 0
        self._cool_until = 0.0
        self._become("closed")

    def retry_in(self, now: float) -> float:
        """Seconds until the next call may be made; 0 if one may be made now, or as soon as a probe is back."""
        open_for = self._open_until - now if self._state == "open" else 0.0
        return max(0.0, open_for, self._cool_until - now)

    def _give_back(self, permit: Permit) -> bool:
        """Whether the permit's call still counts."""
        if permit.era != self._era:
            return False
        if permit.probe:
            self._probing = False
        return True

    def _become(self, state: BreakerState) -> None:
        before, self._state = self._state, state
        self._era += 1
        self.usual = Permit(self._era, False)
        self._failures = self._successes = 0
        self._probing = False
        if self._changed is not None and before != state:
            self._changed(before, state)
