"""A wish to think that a backend's model cannot fulfil, taken back step by step: programs send one with every request."""

from __future__ import annotations

import msgspec

from hostler.adapters.errors import BackendRejected, BadRequest
from hostler.adapters.types import ChatRequest, CompletionRequest, CountRequest, EmbedRequest, Request, RerankRequest

_WORDS = (b"think", b"reasoning")
_CLIENTS_FAULT = frozenset({400, 422})


def without_thinking(request: Request, rejected: BackendRejected) -> Request | None:
    """The request with less of a wish to think: first without how much, then without any.

    `None` if nothing is wished for, if something else was refused, or if the client speaks the backend's own protocol
    and is to read its refusal. The request must be expanded.
    """
    if rejected.backend_status not in _CLIENTS_FAULT or rejected.wire == request.origin.wire:
        return None
    if not isinstance(request, ChatRequest) or request.conversation is None or not request.conversation.thinking:
        return None
    refused = rejected.body.lower()
    if not any(word in refused for word in _WORDS):
        return None
    less = True if isinstance(request.conversation.thinking, str) else None
    return msgspec.structs.replace(request, conversation=msgspec.structs.replace(request.conversation, thinking=less))


_WISH: dict[type[object], str] = {
    CompletionRequest: "continue a plain text",
    CountRequest: "count tokens",
    EmbedRequest: "embed texts",
    RerankRequest: "order documents",
}


def unspoken(request: Request, protocol: str) -> BadRequest:
    """The error for a request that `protocol`, a name in the genitive, cannot pass on."""
    wish = _WISH.get(type(request))
    why = "" if wish is None else f": {protocol} protocol cannot {wish}. Use a model of another backend for that"
    return BadRequest(f"The backend of this model does not understand this kind of request{why}.")
