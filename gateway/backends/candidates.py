"""The targets of a request with their hops, and how long those whose circuits are open rest."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from functools import partial

import msgspec

from hostler.adapters.canonical import LoadRequest
from hostler.gateway.backends.chain_errors import FailedHop
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.suitability import known_inability
from hostler.gateway.context import RequestContext, Target

#: How often a circuit is looked at while another request's trial call is in progress, in seconds.
_TRIAL_S = 0.1
#: The share of the time waited so far that passes until the next look.
_SHARE_WAITED = 0.1
#: What is added to a rest, in seconds, so that the circuit is certainly half open afterwards.
_MARGIN_S = 0.005
#: The share of the longest rest for which backends that are down are waited for: a restart, not a machine that is off.
_DOWN_SHARE = 0.2
#: Bodies from this size on, in bytes, are looked through in a thread.
_LARGE = 256 * 1024


class Candidate(msgspec.Struct, frozen=True):
    """A target with its hop: `index` is its place among the request's targets, `later` are those that may follow it."""

    index: int
    hop: Hop
    target: Target
    later: tuple[Target, ...]

    def rest_s(self, now: float) -> float:
        """Seconds until its circuit may allow an attempt."""
        return max(_TRIAL_S, self.hop.breakers.retry_in(self.target.name_there, now))


def paused_candidates(
    targets: Iterable[Target], hops: Mapping[str, Hop], failed: Collection[FailedHop]
) -> list[Candidate]:
    """The targets that were skipped since their circuits are open, but not for long."""
    paused = {each.hop.name for each in failed if each.reason == "circuit_open" and not each.final}
    return [
        Candidate(index, hops[target.backend], target, ())
        for index, target in enumerate(targets)
        if target.backend in paused
    ]


def shortest_rest_s(
    candidates: Iterable[Candidate], *, since: float, now: float, deadline: float, max_rest_s: float
) -> float | None:
    """The shortest rest of the candidates' circuits; `None` if none ends in time.

    A request that has waited `since` then may wait for `max_rest_s`, less for backends that are down, and until
    `deadline`.
    """
    rests: list[float] = []
    for candidate in candidates:
        # The longer it waits, the less often it looks: a crowd may wait for one trial call.
        rest_s = max(candidate.rest_s(now), _SHARE_WAITED * (now - since))
        limit_s = max_rest_s if candidate.hop.reachable() else max_rest_s * _DOWN_SHARE
        if now + rest_s <= min(since + limit_s, deadline):
            rests.append(rest_s)
    return min(rests) + _MARGIN_S if rests else None


async def find_inability(context: RequestContext, candidate: Candidate) -> FailedHop | None:
    """The candidate as a skipped hop if its model, which is not loaded, certainly cannot serve the request."""
    request, target = context.request, candidate.target
    if isinstance(request, LoadRequest):
        return None
    judge = partial(known_inability, request, target, context.adapter, context.requested_model)
    # Looking through a large body takes a while, and other requests are served meanwhile.
    inability = judge() if len(request.origin.body) < _LARGE else await asyncio.to_thread(judge)
    return None if inability is None else FailedHop(hop=candidate.hop, reason=inability[0], error=inability[1])
