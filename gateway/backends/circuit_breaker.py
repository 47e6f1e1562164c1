"""What is thought of one backend and of each of its models: the breakers that an attempt passes and reports to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from hostler.gateway.backends.failure_policy import VERDICTS, Advice, Outcome, Verdict

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


#: Advice that holds nothing against anybody.
_KIND: Final[tuple[Advice, ...]] = ("success", "neutral")

Changed = Callable[[str | None, BreakerState, BreakerState], None]


class Pass(msgspec.Struct, frozen=True):
    """The right to one attempt. Report it exactly once; "the client left" is a report, too.

    `counted`: its first word has been counted as a success already.
    """

    model: str
    of_host: Permit
    of_model: Permit
    counted: bool = False


class CircuitBreakers:
    """One backend: a breaker for the host and one for each of its models. Both must agree to an attempt.

    `changed` is told of every change of state: the model (`None`: the host), the state before and the state after.
    """

    def __init__(
        self, rules: BreakerRules, random: Callable[[], float], cool_s: float = 5.0, changed: Changed | None = None
    ) -> None:
        self._rules = rules
        self._random = random
        self._cool_s = cool_s
        self._changed = changed
        self._host = self._breaker(None)
        self._models: dict[str, Breaker] = {}
        self._suspects: set[str] = set()
        self._why: dict[str | None, Outcome] = {}

    @property
    def host(self) -> Breaker:
        """The host's breaker, for those who probe or look at it."""
        return self._host

    @property
    def models(self) -> Mapping[str, Breaker]:
        """The breakers of models that were ever asked."""
        return MappingProxyType(self._models)

    def acquire(self, model: str, now: float) -> Pass | None:
        """The right to try `model` here now, or `None`."""
        breaker = self._models.get(model) or self._of(model)
        if not (breaker.allows(now) and self._host.allows(now)):
            return None
        of_host, of_model = self._host.acquire(now), breaker.acquire(now)
        assert of_host is not None and of_model is not None, "they allowed a call a moment ago"
        return Pass(model, of_host, of_model)

    def allows(self, model: str, now: float) -> bool:
        """Whether `acquire` would give a pass. Changes nothing."""
        return (self._models.get(model) or self._of(model)).allows(now) and self._host.allows(now)

    def began(self, permit: Pass, now: float) -> Pass:
        """The first word came. It counts now, since the rest of the answer may take minutes: report the pass that is
        given back when the attempt ends."""
        if permit.counted:
            return permit
        self.report(permit, "answered", now)
        return Pass(permit.model, self._host.usual, self._of(permit.model).usual, counted=True)

    def report(
        self, permit: Pass, outcome: Outcome, now: float, *, retry_after_s: float | None = None, down: bool = False
    ) -> Verdict:
        """The attempt ended so; what follows. `down`: the supervisor's heartbeat is gone as well."""
        verdict = VERDICTS[outcome]
        if permit.counted and outcome == "answered":
            return verdict
        cool_s = self._cool_s if retry_after_s is None else retry_after_s
        if verdict.host == "success":
            self._suspects.clear()
        host: Advice = verdict.host
        if host == "suspect":
            self._suspects.add(permit.model)
            host = "failure" if len(self._suspects) > 1 else "neutral"
        _tell(self._host, permit.of_host, host, now, verdict.open_s, cool_s, at_once=down)
        _tell(self._of(permit.model), permit.of_model, verdict.model, now, verdict.open_s, cool_s)
        if host not in _KIND:
            self._why[None] = outcome
        if verdict.model not in _KIND:
            self._why[permit.model] = outcome
        return verdict

    def why(self, model: str | None) -> Outcome | None:
        """What was held against `model` last, or (`None`) against the host; it may be forgiven by now."""
        return self._why.get(model)

    def retry_in(self, model: str, now: float) -> float:
        """Seconds until an attempt makes sense again."""
        return max(self._host.retry_in(now), self._of(model).retry_in(now))

    def state(self, model: str, now: float) -> BreakerState:
        """The stricter of both states: what an attempt at `model` would meet."""
        states = {self._host.state(now), self._of(model).state(now)}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def recovered(self) -> None:
        """A background probe of the host succeeded: it is used again at once. Its models keep their own breakers."""
        self._suspects.clear()
        self._host.close()

    def mended(self, model: str) -> None:
        """Somebody tried `model` on purpose, and it answered: nothing that was held against it counts any more."""
        self.recovered()
        self._of(model).close()

    def unanswered(self, now: float, for_s: float, *, confirms: bool = False) -> None:
        """A background probe of the host failed. As long as probes go on failing, no request has to find it out:
        `for_s` is when the next probe's result will be known. `confirms`: an attempt could not reach it either."""
        self._why[None] = "unreachable"
        if self._host.state(now) == "closed" and not confirms:
            if (permit := self._host.acquire(now)) is not None:
                self._host.failure(permit, now)
        else:
            self._host.trip(now, max(for_s, self._host.retry_in(now)))

    def _of(self, model: str) -> Breaker:
        breaker = self._models.get(model)
        if breaker is None:
            breaker = self._models[model] = self._breaker(model)
        return breaker

    def _breaker(self, model: str | None) -> Breaker:
        return Breaker(self._rules, self._random, None if self._changed is None else partial(self._changed, model))


def _tell(
    breaker: Breaker, permit: Permit, advice: Advice, now: float, open_s: float, cool_s: float, *, at_once: bool = False
) -> None:
    if advice == "success":
        breaker.success(permit, now)
    elif advice == "failure":
        breaker.failure(permit, now, at_once=at_once)
    else:
        breaker.release(permit)
        if advice == "open":
            breaker.trip(now, open_s)
        elif advice == "cool":
            breaker.cool(now + cool_s)
