"""Which hops of the chain a request skips, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile

from hostler.adapters.canonical import LoadRequest
from hostler.gateway.backends.candidates import Candidate
from hostler.gateway.backends.chain_errors import FailedHop
from hostler.gateway.backends.failure_policy import SkipReason
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.reservation import rate_wait_s, refusal
from hostler.gateway.backends.suitability import fits_better_later, has_no_room
from hostler.gateway.context import RequestContext, Target

#: The number of hops tried for one request; skipped ones do not count.
MAX_HOPS = 3


class SkipRules:
    """The rules for a request at its present candidate, with the hops that have failed so far."""

    def __init__(self, hops: Mapping[str, Hop], clock: Callable[[], float]) -> None:
        self._hops = hops
        self._clock = clock

    def skipped(self, context: RequestContext, candidate: Candidate, failed: list[FailedHop]) -> FailedHop | None:
        """The candidate as a skipped hop, or `None` if it is to be tried."""
        reason = self.reason(context, candidate, failed)
        if reason is None:
            return None
        if reason == "circuit_open":
            return self.paused(candidate)
        return FailedHop(hop=candidate.hop, reason=reason, retry_after_s=self._ends_in(candidate, reason))

    def paused(self, candidate: Candidate) -> FailedHop:
        """The candidate as a hop whose circuit is open."""
        now = self._clock()
        paused_by = candidate.hop.breakers.paused_by(candidate.target.name_there, now)
        return FailedHop(
            hop=candidate.hop, reason="circuit_open", retry_after_s=candidate.rest_s(now), paused_by=paused_by
        )

    @staticmethod
    def needs_permit(context: RequestContext) -> bool:
        """Whether an open circuit keeps the request from a hop."""
        return context.only is None and not isinstance(context.request, LoadRequest)

    def reason(self, context: RequestContext, candidate: Candidate, failed: list[FailedHop]) -> SkipReason | None:
        """Why the candidate is skipped, or `None` if it is to be tried."""
        hop, target = candidate.hop, candidate.target
        if context.only is not None and target.backend != context.only:
            return "excluded"
        if context.local_only and not hop.local:
            return "non_local"
        if hop.draining():
            return "draining"
        if (refused := refusal(context, hop, target)) is not None:
            return refused
        if rate_wait_s(context, hop, self._clock()) > 0:
            return "rate_limited"
        if not self.needs_permit(context):
            return None
        if fits_better_later(context.request, target, candidate.later) or (failed and has_no_room(target, failed)):
            return "too_long"
        if len(failed) >= MAX_HOPS and len({attempt.hop for attempt in context.attempts}) >= MAX_HOPS:
            return "max_attempts"
        if not hop.breakers.allows(target.name_there, self._clock()):
            return "circuit_open"
        return None

    def _ends_in(self, candidate: Candidate, reason: SkipReason) -> float | None:
        hop = candidate.hop
        if reason == "budget_exhausted" and hop.spending is not None:
            return hop.spending.resumes_in()
        if reason == "rate_limited" and hop.rates is not None:
            return hop.rates.wait_s(self._clock())
        return None

    def alternatives(
        self, context: RequestContext, candidate: Candidate, failed: list[FailedHop]
    ) -> tuple[Target, ...]:
        """The hosts that come next, and could answer instead of this one: what the chain names before another host is tried
        before it."""
        next_hosts = takewhile(lambda target: self._hops[target.backend].supervised, candidate.later)
        return tuple(
            target
            for target in next_hosts
            if self.reason(context, Candidate(0, self._hops[target.backend], target, ()), failed) is None
        )
