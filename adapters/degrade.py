"""Requests that a backend cannot serve as they are: retried without reasoning options, or refused."""

from __future__ import annotations

import msgspec

from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    CountRequest,
    EmbedRequest,
    Request,
    RerankRequest,
)
from hostler.adapters.errors import BackendRejected, BadRequest

_REASONING = (b"think", b"reasoning", b"effort")
#: Part of the form of reasoning that Anthropic's newer models take; their errors name it.
_ADAPTIVE = b"adaptive"
_CLIENT_ERRORS = frozenset({400, 422})

_KINDS: dict[type[object], str] = {
    CompletionRequest: "text completions",
    CountRequest: "token counts",
    EmbedRequest: "embeddings",
    RerankRequest: "reranking",
}


def without_thinking(request: Request, rejected: BackendRejected) -> Request | None:
    """The request with less reasoning, for models that reject it: first without a budget if the model takes none, then
    without an effort, then without any.

    `None` if no reasoning is asked for, if something else was rejected, or if the client speaks the backend's own
    protocol and is to read its error. The request must be expanded.
    """
    if rejected.backend_status not in _CLIENT_ERRORS or rejected.wire == request.origin.wire:
        return None
    if not isinstance(request, ChatRequest) or request.conversation is None or not request.conversation.thinking:
        return None
    error = rejected.body.lower()
    if not any(word in error for word in _REASONING):
        return None
    conversation = request.conversation
    if _ADAPTIVE in error and not conversation.adaptive_thinking:
        less = msgspec.structs.replace(conversation, adaptive_thinking=True)
    else:
        thinking = True if isinstance(conversation.thinking, str) else None
        less = msgspec.structs.replace(conversation, thinking=thinking)
    return msgspec.structs.replace(request, conversation=less)


def unsupported(request: Request, protocol: str) -> BadRequest:
    """The error for a kind of request that a backend's protocol does not have."""
    kind = _KINDS.get(type(request))
    if kind is None:
        return BadRequest("The backend of this model does not support this kind of request.")
    return BadRequest(
        f"The backend of this model does not support this kind of request: {protocol} has no {kind}. "
        "Use a model of another backend."
    )
