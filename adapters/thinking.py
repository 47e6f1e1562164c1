"""A wish to think that a backend's model cannot fulfil, taken back step by step: programs send one with every request."""

from __future__ import annotations

import msgspec

from hostler.adapters.canonical import ChatRequest, Request
from hostler.adapters.errors import BackendRejected

_WORDS = (b"think", b"reasoning")
_CLIENTS_FAULT = frozenset({400, 422})


def without_thinking(request: Request, rejected: BackendRejected) -> Request | None:
    """The request with less of a wish to think: first without how much, then without any.

    `None` if nothing is wished for, if something else was refused, or if the client speaks the backend's own protocol
    and is to read its refusal. The request must be expanded.
    """
    if rejected.answer_status not in _CLIENTS_FAULT or rejected.wire == request.origin.wire:
        return None
    if not isinstance(request, ChatRequest) or request.dialogue is None or not request.dialogue.thinking:
        return None
    refused = rejected.body.lower()
    if not any(word in refused for word in _WORDS):
        return None
    less = True if isinstance(request.dialogue.thinking, str) else None
    return msgspec.structs.replace(request, dialogue=msgspec.structs.replace(request.dialogue, thinking=less))
