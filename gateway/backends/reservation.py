"""What an attempt at a remote backend may cost, reserved at the spending tracker, and has cost, which settles that."""

from __future__ import annotations

from hostler.adapters.canonical import LoadRequest, WebSocketRequest
from hostler.adapters.errors import UpgradeRequired
from hostler.gateway.backends.cost import Reservation, cost_of
from hostler.gateway.backends.failure_policy import SkipReason
from hostler.gateway.backends.hop import Hop
from hostler.gateway.context import Attempt, RequestContext, Target


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
