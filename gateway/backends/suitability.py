"""Whether a target can serve a request at all: what its model cannot do, and whether the prompt fits.

Plain functions; `later` are the targets that may follow.
"""

from __future__ import annotations

from collections.abc import Sequence

from hostler.adapters.base import Adapter
from hostler.adapters.canonical import ChatRequest, CompletionRequest, Request
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError
from hostler.adapters.needs import needs, texts
from hostler.gateway.backends.chain_errors import FailedHop, too_long, unsupported
from hostler.gateway.backends.failure_policy import (
    BYTES_PER_TOKEN,
    SkipReason,
    certain_tokens,
    min_prompt_tokens,
    rejection_cause,
)
from hostler.gateway.context import Target


def known_inability(
    request: Request, target: Target, adapter: Adapter, name: str | None
) -> tuple[SkipReason, GatewayError] | None:
    """Why a model need not be loaded for this request, and the client's error: it certainly cannot serve it.

    A loaded model is asked all the same: its engine knows better, and says by how much a request is too long. `name` is
    the model's name as the client sent it.
    """
    try:
        adapter.check_for_engines(request)
    except BadRequest as error:
        return "unsupported", error
    name = name or target.model
    missing = target.lacks & needs(request, adapter.expand) if target.lacks else frozenset[str]()
    if missing:
        return "unsupported", unsupported(name, missing)
    if not target.context or len(request.origin.body) // BYTES_PER_TOKEN <= target.context or adapter.shortens(request):
        return None
    for together in texts(request, adapter.expand):
        tokens = certain_tokens(together, limit=target.context)
        if tokens > target.context:
            return "too_long", too_long(name, tokens, target.context)
    return None


def fits_better_later(request: Request, target: Target, later: Sequence[Target]) -> bool:
    """Whether the prompt cannot fit here but may fit at a later target."""
    if not (target.context and later) or not isinstance(request, (ChatRequest, CompletionRequest)):
        return False
    return _has_larger_context(target, later) and min_prompt_tokens(request.origin.body) > target.context


def has_no_room(target: Target, failed: Sequence[FailedHop]) -> bool:
    """Whether a prompt that was too long for another hop is too long here as well.

    Not judged by the number of tokens in that hop's error: another model counts differently.
    """
    return any(
        0 < target.context <= each.context
        and isinstance(each.error, BackendRejected)
        and rejection_cause(each.error) == "context"
        for each in failed
    )


def another_may_accept(error: GatewayError, target: Target, later: Sequence[Target]) -> bool:
    """Whether another target may accept what this one rejected: a later one, or one that is down for the moment."""
    if isinstance(error, BadRequest):
        return True
    match rejection_cause(error):
        case "context":
            return _has_larger_context(target, later)
        case "model" | "contents":
            return bool(later)
        case "engine":
            return True
    return False


def _has_larger_context(target: Target, later: Sequence[Target]) -> bool:
    """Whether a later target has a larger context, or one of unknown size."""
    return any(not other.context or other.context > target.context for other in later)
