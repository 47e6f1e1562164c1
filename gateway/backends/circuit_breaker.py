"""Circuit breakers of a backend: one for the host and one for each of its models. Decisions only; the time is an
argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from hostler.gateway.backends.failure_policy import FAILURE_RULES, AttemptResult, BreakerSignal, FailureRule

BreakerState = Literal["closed", "open", "half_open"]
#: Breakers of models of a backend from which on closed ones are forgotten.
MAX_CLOSED = 1000
#: How long a backend that asks for a pause gets no requests if it does not say for how long, in seconds.
_COOL_S = 5.0

OnBreakerChange = Callable[[str | None, BreakerState, BreakerState], None]


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True):
    """Opens after `failures` in a row for `open_s`, doubled each time up to `max_open_s`; closes after `successes`
    trial calls in a row. `jitter` is the random share by which the open time is shortened."""

    failures: int = 3
    successes: int = 2
    open_s: float = 5.0
    max_open_s: float = 300.0
    jitter: float = 0.2


class BreakerPermit(msgspec.Struct, frozen=True):
    """The right to one call through one breaker. Return it exactly once: `success`, `failure` or `release`."""

    era: int
    trial: bool


class CircuitBreaker:
    """State by state: `closed` lets every call through · `open` none until its time is over · `half_open` one at a
    time.

    `shared_permit` is what nearly every call gets: it is no trial, and its return is not counted singly. `on_change`
    receives the state before and after each change. A call that began before the last change is not counted.
    """

    def __init__(
        self,
        rules: BreakerRules,
        random: Callable[[], float],
        on_change: Callable[[BreakerState, BreakerState], None] | None = None,
    ) -> None:
        self._rules = rules
        self._random = random
        self._on_change = on_change
        self._state: BreakerState = "closed"
        self._era = 0
        self.shared_permit = BreakerPermit(0, False)
        self._failures = 0
        self._successes = 0
        self._opened = 0
        self._open_until = 0.0
        self._cool_until = 0.0
        self._on_trial = False

    def state(self, now: float) -> BreakerState:
        """The state at `now`: an open breaker whose time is over is `half_open`."""
        return "half_open" if self._state == "open" and now >= self._open_until else self._state

    @property
    def is_closed(self) -> bool:
        """Whether every call passes, but for a time that the backend asked for."""
        return self._state == "closed"

    def allows(self, now: float) -> bool:
        """Whether `acquire` would give a permit. Changes nothing."""
        if now < self._cool_until:
            return False
        return self._state == "closed" or (self.state(now) == "half_open" and not self._on_trial)

    def acquire(self, now: float) -> BreakerPermit | None:
        """A permit for one call, or `None`."""
        if self._state == "closed" and now >= self._cool_until:
            return self.shared_permit
        if not self.allows(now):
            return None
        if self._state == "open":
            self._become("half_open")
        self._on_trial = self._state == "half_open"
        return BreakerPermit(self._era, True) if self._on_trial else self.shared_permit

    def success(self, permit: BreakerPermit, now: float) -> None:
        """The call succeeded."""
        if permit is not self.shared_permit and not self._return(permit):
            return
        self._failures = 0
        self._successes += 1
        if self._state == "half_open" and self._successes >= self._rules.successes:
            self.close()

    def failure(self, permit: BreakerPermit, now: float, *, at_once: bool = False) -> None:
        """The call failed. `at_once` opens without waiting for more failures."""
        if not self._return(permit):
            return
        self._failures += 1
        if at_once or self._state == "half_open" or self._failures >= self._rules.failures:
            span = min(self._rules.max_open_s, self._rules.open_s * 2.0 ** min(self._opened, 60))
            self._opened += 1
            self._open_until = now + span * (1.0 - self._rules.jitter * self._random())
            self._become("open")

    def release(self, permit: BreakerPermit) -> None:
        """The call says nothing about the backend: the client disconnected, the request was invalid, the model is
        loading."""
        self._return(permit)

    def cool(self, until: float) -> None:
        """No calls before `until`, as the backend asked. This is no failure."""
        self._cool_until = max(self._cool_until, until)

    def trip(self, now: float, for_s: float) -> None:
        """Open for so long: trying again makes no sense (a rejected key, an exhausted account)."""
        self._open_until = now + for_s
        self._become("open")

    def close(self) -> None:
        """The backend works: a health check passed, or an operator's request was answered."""
        self._opened = 0
        self._cool_until = 0.0
        self._become("closed")

    def retry_in(self, now: float) -> float:
        """Seconds until the next call is allowed; 0 if one is allowed now, or as soon as the trial call returns."""
        open_for = self._open_until - now if self._state == "open" else 0.0
        return max(0.0, open_for, self._cool_until - now)

    def _return(self, permit: BreakerPermit) -> bool:
        """Whether the permit's call still counts."""
        if permit.era != self._era:
            return False
        if permit.trial:
            self._on_trial = False
        return True

    def _become(self, state: BreakerState) -> None:
        before, self._state = self._state, state
        self._era += 1
        self.shared_permit = BreakerPermit(self._era, False)
        self._failures = self._successes = 0
        self._on_trial = False
        if self._on_change is not None and before != state:
            self._on_change(before, state)


#: Signals that are no reason to avoid a backend.
_HARMLESS: Final[tuple[BreakerSignal, ...]] = ("success", "neutral")


class Permit(msgspec.Struct, frozen=True):
    """The right to one attempt at a model of a backend. Report it exactly once, also if the client disconnected.

    `counted`: its first token was counted as a success already.
    """

    model: str
    of_host: BreakerPermit
    of_model: BreakerPermit
    counted: bool = False


class CircuitBreakers:
    """The breakers of one backend. Both the host's and the model's must allow an attempt.

    `on_change` receives every change of state: the model (`None`: the host), the state before and the state after.
    """

    def __init__(
        self,
        rules: BreakerRules,
        random: Callable[[], float],
        on_change: OnBreakerChange | None = None,
    ) -> None:
        self._rules = rules
        self._random = random
        self._on_change = on_change
        self._host = self._breaker(None)
        self._models: dict[str, CircuitBreaker] = {}
        self._suspects: set[str] = set()
        self._last_failures: dict[str | None, AttemptResult] = {}

    @property
    def host(self) -> CircuitBreaker:
        """The host's breaker."""
        return self._host

    @property
    def models(self) -> Mapping[str, CircuitBreaker]:
        """The breakers of the models that were ever requested."""
        return MappingProxyType(self._models)

    def acquire(self, model: str, now: float) -> Permit | None:
        """A permit for one attempt at `model`, or `None`."""
        host, breaker = self._host, self._models.get(model) or self._of(model)
        if not breaker.allows(now):  # before the host is asked, whose only trial call this may be
            return None
        of_host = host.acquire(now)
        of_model = None if of_host is None else breaker.acquire(now)
        return None if of_host is None or of_model is None else Permit(model, of_host, of_model)

    def allows(self, model: str, now: float) -> bool:
        """Whether `acquire` would give a permit. Changes nothing."""
        return (self._models.get(model) or self._of(model)).allows(now) and self._host.allows(now)

    def first_token(self, permit: Permit, now: float) -> Permit:
        """Count the first token as a success at once, since the rest of the answer may take minutes. Report the
        returned permit when the attempt ends."""
        if permit.counted:
            return permit
        host, breaker = self._host, self._of(permit.model)
        self._suspects.clear()
        host.success(permit.of_host, now)
        breaker.success(permit.of_model, now)
        return Permit(permit.model, host.shared_permit, breaker.shared_permit, counted=True)

    def report(
        self,
        permit: Permit,
        outcome: AttemptResult,
        now: float,
        *,
        retry_after_s: float | None = None,
        down: bool = False,
    ) -> FailureRule:
        """The attempt ended with `outcome`; returns what follows. `down`: the supervisor's heartbeat is missing as
        well."""
        rule = FAILURE_RULES[outcome]
        if permit.counted and outcome == "answered":
            return rule
        cool_s = _COOL_S if retry_after_s is None else retry_after_s
        if rule.host == "success":
            self._suspects.clear()
        host: BreakerSignal = rule.host
        if host == "suspect":
            self._suspects.add(permit.model)
            host = "failure" if len(self._suspects) > 1 else "neutral"
        _signal(self._host, permit.of_host, host, now, rule.open_s, cool_s, at_once=down)
        _signal(self._of(permit.model), permit.of_model, rule.model, now, rule.open_s, cool_s)
        if host not in _HARMLESS:
            self._last_failures[None] = outcome
        if rule.model not in _HARMLESS:
            self._last_failures[permit.model] = outcome
        return rule

    def last_failure(self, model: str | None) -> AttemptResult | None:
        """The last failure of `model`, or (`None`) of the host; its breaker may have closed since."""
        return self._last_failures.get(model)

    def paused_by(self, model: str, now: float) -> AttemptResult | None:
        """The last failure of what allows no attempt at `model` now: of the host, else of the model."""
        return self._last_failures.get(model if self._host.allows(now) else None)

    def retry_in(self, model: str, now: float) -> float:
        """Seconds until an attempt is allowed again."""
        return max(self._host.retry_in(now), self._of(model).retry_in(now))

    def state(self, model: str, now: float) -> BreakerState:
        """The stricter state of both breakers."""
        states = {self._host.state(now), self._of(model).state(now)}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def recovered(self) -> None:
        """A health check passed: the host is used again at once. Its models keep their own breakers."""
        self._suspects.clear()
        self._host.close()

    def reset(self, model: str) -> None:
        """An operator's request for `model` was answered although its breaker was open: close both breakers."""
        self.recovered()
        self._of(model).close()

    def follow(self, model: str | None, state: BreakerState, now: float, for_s: float) -> None:
        """Another process of this gateway has opened the breaker of `model` (`None`: the host's) for so long, or has
        closed it. A trial is its own affair."""
        breaker = self._host if model is None else self._of(model)
        if state == "open" and breaker.is_closed:
            breaker.trip(now, for_s)
        elif state == "closed" and not breaker.is_closed:
            breaker.close()

    def check_failed(self, now: float, for_s: float, *, confirms: bool = False) -> None:
        """A health check failed. The host stays open for `for_s`, until the next check's result is known, so that no
        request has to find out. `confirms`: an attempt could not reach it either."""
        self._last_failures[None] = "unreachable"
        if self._host.state(now) == "closed" and not confirms:
            if (permit := self._host.acquire(now)) is not None:
                self._host.failure(permit, now)
        else:
            self._host.trip(now, max(for_s, self._host.retry_in(now)))

    def _of(self, model: str) -> CircuitBreaker:
        breaker = self._models.get(model)
        if breaker is None:
            if len(self._models) >= MAX_CLOSED:  # names that a wildcard passes on are not bounded
                self._models = {name: each for name, each in self._models.items() if not each.is_closed}
            breaker = self._models[model] = self._breaker(model)
        return breaker

    def _breaker(self, model: str | None) -> CircuitBreaker:
        on_change = None if self._on_change is None else partial(self._on_change, model)
        return CircuitBreaker(self._rules, self._random, on_change)


def _signal(
    breaker: CircuitBreaker,
    permit: BreakerPermit,
    signal: BreakerSignal,
    now: float,
    open_s: float,
    cool_s: float,
    *,
    at_once: bool = False,
) -> None:
    if signal == "success":
        breaker.success(permit, now)
    elif signal == "failure":
        breaker.failure(permit, now, at_once=at_once)
    else:
        breaker.release(permit)
        if signal == "open":
            breaker.trip(now, open_s)
        elif signal == "cool":
            breaker.cool(now + cool_s)
