"""Fallback: tries the hops of the chain one after the other until one answers, as the failure policy says.

Once a token has been sent to the client, no other hop may answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec

from hostler.adapters.canonical import LoadRequest, ProgressPhase
from hostler.adapters.errors import (
    BadRequest,
    ClientDisconnected,
    GatewayError,
    ModelUnavailable,
    RequestCancelled,
    ShuttingDown,
    WaitTimeout,
    drop_tracebacks,
)
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.backends.cancellable_sleep import CancellableSleeps
from hostler.gateway.backends.candidates import Candidate, find_inability, paused_candidates, shortest_rest_s
from hostler.gateway.backends.chain_errors import FailedHop, chain_error, public_error, summary
from hostler.gateway.backends.circuit_breaker import Permit
from hostler.gateway.backends.failure_policy import (
    DESCRIPTIONS,
    FAILURE_RULES,
    AttemptResult,
    SkipReason,
    classify_error,
    retryable_hint,
)
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.request_waits import RequestWaits
from hostler.gateway.backends.reservation import (
    count_request,
    estimate,
    rate_wait_s,
    settle,
    settle_rate,
    uncounted,
)
from hostler.gateway.backends.retry_budget import RetryBudget
from hostler.gateway.backends.skip_rules import SkipRules
from hostler.gateway.backends.suitability import another_may_accept
from hostler.gateway.context import Attempt, RequestContext
from hostler.gateway.events import printable
from hostler.gateway.lease_moves import MovedElsewhere
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.supervisor.scheduling.errors import HostDraining

logger = logging.getLogger(__name__)

#: The longest `Retry-After` that is waited for, in seconds; for a longer one the next hop is tried.
LONGEST_RETRY_AFTER_S = 3.0
#: The longest wait for circuits to close, when all hops that could answer are paused, in seconds.
MAX_REST_S = 10.0
#: How often it is checked whether a host is still expected back, in seconds.
_BACK_WAIT_S = 2.0
#: How often a hop that is loading the model is asked again, in seconds.
_RETRY_LOADING_S = 0.5


class FailedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that did not answer."""

    outcome: AttemptResult
    error: GatewayError


class FallbackMiddleware(RequestMiddleware):
    """Tries the request's candidates in order, and reports each attempt to its hop's circuit breakers.

    `max_wait_s` sets the request's deadline: the time that it may wait, over all candidates together. `max_rest_s` is how
    long it waits for circuits that are open, a fifth of that for backends that are down.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hops: Mapping[str, Hop],
        budget: RetryBudget,
        sleeps: CancellableSleeps,
        max_wait_s: float,
        max_rest_s: float = MAX_REST_S,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(app)
        self._hops = hops
        self._skips = SkipRules(hops, clock)
        self._waits = RequestWaits(sleeps, clock)
        self._budget = budget
        self._max_wait_s = max_wait_s
        self._max_rest_s = max_rest_s
        self._clock = clock

    async def dispatch(self, context: RequestContext, call_next: CallNext) -> None:
        targets, now = context.candidates, self._clock()
        if not targets:
            model = context.shown_model
            raise ModelUnavailable(f"no backend of the chain can run {model}", model=model, final=True)
        context.deadline = None if context.background else now + self._max_wait_s
        self._budget.count_request(now)
        failed: list[FailedHop] = []
        ahead = list(enumerate(targets))
        try:
            while ahead:
                index, target = ahead.pop(0)
                later = tuple(each for _, each in ahead)
                candidate = Candidate(index, self._hops[target.backend], target, later)
                failure = self._skips.skipped(context, candidate, failed)
                if failure is None:
                    context.alternatives = self._skips.alternatives(context, candidate, failed)
                    try:
                        failure = await self._try(context, candidate, failed, call_next)
                    except MovedElsewhere as moved:
                        context.granted = moved.lease
                        place = targets.index(moved.target)
                        ahead = [(place, moved.target), (index, target), *(each for each in ahead if each[0] != place)]
                        continue
                    if failure is None:
                        return
                _withdraw_granted(context)
                failed.append(failure)
        finally:
            context.alternatives = ()
            _withdraw_granted(context)
        rests_since = self._clock()
        while (paused := await self._rested(context, failed, rests_since)) is not None:
            if await self._try_again(context, paused, failed, call_next):
                return
        for index, target in enumerate(targets):
            candidate = Candidate(index, self._hops[target.backend], target, ())
            back = await self._is_back(context, candidate, failed)
            if back and await self._try_again(context, candidate, failed, call_next):
                return
        _note(context, failed)
        raise chain_error(context.shown_model, failed)

    async def _try_again(
        self, context: RequestContext, candidate: Candidate, failed: list[FailedHop], call_next: CallNext
    ) -> bool:
        """Try one of the failed hops again."""
        failed[:] = [each for each in failed if each.hop is not candidate.hop]
        failure = await self._try(context, candidate, failed, call_next)
        if failure is not None:
            failed.append(failure)
        return failure is None

    # Attempts

    async def _try(
        self, context: RequestContext, candidate: Candidate, failed: list[FailedHop], call_next: CallNext
    ) -> FailedHop | None:
        """Try one hop, again if the policy says so. `None` if it answered; raises errors that no other hop can fix."""
        hop, target = candidate.hop, candidate.target
        if target.needs_load and (unable := await find_inability(context, candidate)) is not None:
            return unable
        if (refused := uncounted(context, hop)) is not None:
            return FailedHop(hop=hop, reason="unsupported", error=refused)
        if failed:
            _note(context, failed)
        retried = len(context.attempts) > 1 and _retries(context) > 0
        woken = False
        while True:
            if (wait_s := rate_wait_s(context, hop, self._clock())) > 0:
                return FailedHop(hop=hop, reason="rate_limited", retry_after_s=wait_s)
            reserved = estimate(context, hop, target)
            if reserved is not None and hop.spending is not None and not await hop.spending.try_reserve(reserved):
                return FailedHop(hop=hop, reason="budget_reserved")
            # Load requests call no model, and a request that names its backend may try one whose circuit is open.
            permit = (
                None
                if isinstance(context.request, LoadRequest)
                else hop.breakers.acquire(target.name_there, self._clock())
            )
            if permit is None and self._skips.needs_permit(context):
                # While it waited for its money, another request began the trial.
                if reserved is not None and hop.spending is not None:
                    hop.spending.settle(reserved, None, answered=False)
                return self._skips.paused(candidate)
            use = count_request(context, hop, self._clock())
            attempt = context.begin_attempt(target, hop=candidate.index, now=self._clock())
            try:
                failure = await self._attempt(context, attempt, hop, permit, call_next)
            finally:
                settle(context, attempt, hop, reserved)
                settle_rate(attempt, hop, use)
            if failure is None:
                return None
            error, rule = failure.error, FAILURE_RULES[failure.outcome]
            if context.writer.committed or rule.fallback == "never":
                raise public_error(error, hop)
            if not woken and hop.can_wake(failure.error) and hop.breakers.allows(target.name_there, self._clock()):
                woken = True
                continue  # the next attempt wakes it
            retry_in_s = self._retry_in_s(context, failure, candidate, retried)
            if retry_in_s is not None:
                retried = retried or rule.retry != "wait"
                await self._waits.sleep(context, retry_in_s, "loading" if rule.retry == "wait" else "fallback")
                if hop.breakers.allows(target.name_there, self._clock()):
                    continue
            if rule.fallback == "if_other" and not another_may_accept(error, target, candidate.later):
                raise public_error(error, hop)
            return self._failed_hop(candidate, failure)

    def _failed_hop(self, candidate: Candidate, failure: FailedAttempt) -> FailedHop:
        """The candidate as a failed hop, after the last attempt at it."""
        hop, target, error = candidate.hop, candidate.target, failure.error
        after = error.retry_after_s
        if after is None:
            after = hop.breakers.retry_in(target.name_there, self._clock()) or None
        reason: AttemptResult | SkipReason = failure.outcome
        if isinstance(error, BadRequest):
            reason = "unsupported"
        elif isinstance(error, HostDraining):
            reason = "draining"
        return FailedHop(hop=hop, reason=reason, error=error, retry_after_s=after, context=target.context)

    async def _attempt(
        self, context: RequestContext, attempt: Attempt, hop: Hop, permit: Permit | None, call_next: CallNext
    ) -> FailedAttempt | None:
        """One attempt. However it ends, the breakers receive one report."""
        outcome: AttemptResult = "client_disconnected"
        ended_as = "gateway_failed"
        error: GatewayError | None = None

        def on_first_token() -> None:
            nonlocal permit
            if permit is not None:
                permit = hop.breakers.first_token(permit, self._clock())

        attempt.on_first_token = on_first_token
        if hop.stall_detector is not None:
            hop.stall_detector.enter(attempt)
        try:
            if hop.wake_on_lan is not None and not hop.reachable():
                await self._waits.wake(context, hop)
            await call_next()
            outcome = ended_as = "answered"
            return None
        except asyncio.CancelledError:
            ended_as = _ended_by(context.cancel_reason)
            raise
        except MovedElsewhere:
            ended_as = "moved"
            raise
        except GatewayError as caught:
            error, ended_as = caught, _ended_by(caught)
            classified = classify_error(caught, committed=context.writer.committed)
            if classified is None:
                if not isinstance(caught, BadRequest) or context.writer.committed:
                    raise
                classified = "rejected"  # this hop's protocol cannot express the request; another one's may
            outcome = ended_as = classified
            drop_tracebacks(caught)
            return FailedAttempt(outcome=classified, error=caught)
        finally:
            attempt.on_first_token = None
            if hop.stall_detector is not None:
                hop.stall_detector.leave(attempt)
            attempt.seconds, attempt.outcome = self._clock() - attempt.started_at, ended_as
            self._report(context, hop, permit, outcome, error)

    def _report(
        self,
        context: RequestContext,
        hop: Hop,
        permit: Permit | None,
        outcome: AttemptResult,
        error: GatewayError | None,
    ) -> None:
        """Report the attempt to the breakers, the health checks and the log."""
        if permit is not None:
            after = error.retry_after_s if error is not None else None
            down = outcome == "unreachable" and not hop.reachable()
            hop.breakers.report(permit, outcome, self._clock(), retry_after_s=after, down=down)
        elif outcome == "answered" and context.only is not None:
            hop.breakers.reset(context.current.target.name_there)
        if outcome in ("unreachable", "connect_timeout"):
            hop.lost()
        if error is None:
            return
        fields = (context.id, hop.name, DESCRIPTIONS[outcome], printable(error.log_message))
        if FAILURE_RULES[outcome].alert:
            logger.error("%s: %s %s; circuit opened, check its API key and account: %s", *fields)
        else:
            logger.info("%s: %s %s: %s", *fields)

    def _retry_in_s(
        self, context: RequestContext, failure: FailedAttempt, candidate: Candidate, retried: bool
    ) -> float | None:
        """Seconds until the same hop is tried again; `None` if it is not."""
        now = self._clock()
        if retryable_hint(failure.error) is False:
            return None
        match FAILURE_RULES[failure.outcome].retry:
            case "wait":
                left = (context.deadline or now) - now
                return None if isinstance(failure.error, WaitTimeout) or left <= 0 else min(_RETRY_LOADING_S, left)
            case "if_short" if not retried and (after := failure.error.retry_after_s) is not None:
                # Other requests may have paused the hop for longer.
                after = max(after, candidate.hop.breakers.retry_in(candidate.target.name_there, now))
                if after <= LONGEST_RETRY_AFTER_S and self._budget.try_retry(now):
                    return after + 0.005
            case "budget":
                return 0.0 if not retried and self._budget.try_retry(now) else None
        return None

    # Waiting

    async def _rested(self, context: RequestContext, failed: list[FailedHop], since: float) -> Candidate | None:
        """The first hop whose circuit was open and allows attempts again, which is waited for if it does so soon.

        `since` is when the request began to wait for it.
        """
        candidates = paused_candidates(context.candidates, self._hops, failed)
        while True:
            for candidate in candidates:
                if self._skips.reason(context, candidate, failed) is None:
                    return candidate
            now = self._clock()
            deadline = now if context.deadline is None else context.deadline
            rest_s = shortest_rest_s(candidates, since=since, now=now, deadline=deadline, max_rest_s=self._max_rest_s)
            if rest_s is None:
                return None
            await self._waits.sleep(context, rest_s, "fallback")

    async def _is_back(self, context: RequestContext, candidate: Candidate, failed: list[FailedHop]) -> bool:
        """Wait for a host that will be back soon, or is drained, when nothing else can answer. Returns whether to try it
        now."""
        hop, deadline = candidate.hop, context.deadline
        missed = any(each.hop is hop and each.reason in ("unreachable", "circuit_open", "draining") for each in failed)
        while missed and deadline is not None and self._clock() < deadline and (hop.returning() or hop.draining()):
            phase: ProgressPhase = "queued" if hop.draining() else "waking"
            if await self._waits.wait(context, min(deadline, self._clock() + _BACK_WAIT_S), phase, hop.back):
                return self._skips.reason(context, candidate, failed) is None
        return False


def _withdraw_granted(context: RequestContext) -> None:
    """Give a lease back that was granted for an attempt which was not made."""
    lease, context.granted = context.granted, None
    if lease is not None:
        lease.release()


def _note(context: RequestContext, failed: list[FailedHop]) -> None:
    """Note the failed hops in the context, for response headers and the access log."""
    context.reason = summary(failed)
    context.failed_hops = tuple((each.hop.name, each.reason) for each in failed)


def _ended_by(cause: GatewayError | None) -> str:
    """The outcome of an attempt that was ended from outside; without a cause it was cut off by the gateway's stop."""
    if cause is None or isinstance(cause, ShuttingDown):
        return "stopped"
    if isinstance(cause, RequestCancelled):
        return "cancelled"
    return "client_disconnected" if isinstance(cause, ClientDisconnected) else cause.code


def _retries(context: RequestContext) -> int:
    """How often a target was tried again, except for waits until it was loaded."""
    count = 0
    for before, after in zip(context.attempts, context.attempts[1:], strict=False):
        count += before.target == after.target and before.outcome != "loading"
    return count
