"""What an attempt at a remote backend may cost, reserved at the spending tracker, and has cost, which settles that."""

from __future__ import annotations

from hostler.adapters.canonical import LoadRequest, WebSocketRequest
from hostler.adapters.errors import UpgradeRequired
from hostler.gateway.backends.cost import Reservation, cost_of
from hostler.gateway.backends.failure_policy import SkipReason
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.rate_limiter import RateUse
from hostler.gateway.context import Attempt, RequestContext, Target

#: About so many bytes of a request are a token.
_BYTES_PER_TOKEN = 4


def estimate(context: RequestContext, hop: Hop, target: Target) -> Reservation | None:
    """What the request may cost at this hop; `None` where costs do not count."""
    if hop.local or hop.spending is None or isinstance(context.request, LoadRequest):
        return None
    price = hop.price(target.model, target.name_there) if hop.prices else None
    counted = context.client.rules is not None and context.client.rules.counts
    return hop.spending.estimate(
        hop.name,
        target.name_there,
        price,
        len(context.request.origin.body),
        calls=len(context.attempts) + counted,
    )


def refusal(context: RequestContext, hop: Hop, target: Target) -> SkipReason | None:
    """Why the spending limit keeps the request from this hop; `None` if it does not."""
    if hop.local or hop.spending is None:
        return None
    if hop.spending.limit_reached:
        return "budget_exhausted"
    wanted = estimate(context, hop, target)
    if wanted is None or hop.spending.allows(wanted):
        return None
    return "budget_exhausted" if hop.spending.exhausted_for(wanted) else "budget_reserved"


def uncounted(context: RequestContext, hop: Hop) -> UpgradeRequired | None:
    """The error for a WebSocket connection to a hop that has a spending limit: costs are not counted there."""
    is_limited = not hop.local and hop.spending is not None and hop.spending.limit is not None
    if not is_limited or not isinstance(context.request, WebSocketRequest):
        return None
    return UpgradeRequired(
        f"what WebSocket connections to {hop.name} cost is not counted, and there is a daily limit "
        "(gateway.spending.daily_limit); send plain HTTP requests"
    )


def count_request(context: RequestContext, hop: Hop, now: float) -> RateUse | None:
    """Count a request with the tokens that its prompt probably has; `None` where nothing is limited."""
    if hop.rates is None or isinstance(context.request, LoadRequest):
        return None
    return hop.rates.begin(now, len(context.request.origin.body) // _BYTES_PER_TOKEN)


def rate_wait_s(context: RequestContext, hop: Hop, now: float) -> float:
    """Seconds until the hop's limits of requests and tokens admit the request, 0 if they do now."""
    return 0.0 if hop.rates is None or isinstance(context.request, LoadRequest) else hop.rates.wait_s(now)


def settle_rate(attempt: Attempt, hop: Hop, use: RateUse | None) -> None:
    """The attempt has ended: count the tokens that it has used. A backend that never had the request counts none."""
    if use is None or hop.rates is None:
        return
    if attempt.usage is not None:
        hop.rates.end(use, attempt.usage.prompt_tokens + attempt.usage.completion_tokens)
    elif not attempt.is_charged:
        hop.rates.end(use, 0)
    else:
        hop.rates.end(use, use.tokens + attempt.segments)


def settle(context: RequestContext, attempt: Attempt, hop: Hop, reserved: Reservation | None) -> None:
    """The attempt has ended: note its cost, and settle what was reserved for it."""
    usage, cost = attempt.usage, None
    price = hop.price(attempt.target.model, attempt.target.name_there) if hop.prices else None
    if price is not None or (usage is not None and usage.cost is not None):
        body = context.request.origin.body if attempt.is_charged else None
        cost = attempt.cost = cost_of(usage, price, body=body, segments=attempt.segments)
    if reserved is None or hop.spending is None:
        return
    if cost is None and attempt.outcome == "answered" and (usage is None or usage.cost is None):
        cost = 0.0  # neither the backend nor the configuration names a price
    hop.spending.settle(reserved, cost, answered=attempt.is_charged)
