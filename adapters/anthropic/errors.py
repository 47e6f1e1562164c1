"""Errors in Anthropic's words: as a whole answer, and inside a stream that has begun."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import WireResponse
from hostler.adapters.errors import BackendRejected, GatewayError, error_headers
from hostler.adapters.json_body import NOT_JSON

# Each status says the same thing in each protocol; a client that knows only this one's 529 retries 503 just the same.
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Answers about the gateway's own account at a backend: the client can do nothing about them, and its key is not meant.
_OURS = frozenset({401, 402, 403, 407})

_MISREAD = re.compile("context|token|too long", re.IGNORECASE)


class _Detail(msgspec.Struct, frozen=True, kw_only=True):
    message: Any = None
    type: Any = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Rejected(msgspec.Struct, frozen=True, kw_only=True):
    error: _Detail | str | None = None


def error_response(error: GatewayError) -> WireResponse:
    """The error as a complete answer."""
    headers = error_headers(error)
    if isinstance(error, BackendRejected) and error.wire == "anthropic" and error.backend_status not in _OURS:
        return WireResponse(status=error.backend_status, body=error.body, headers=tuple(headers))
    return WireResponse(status=_status(error), body=msgspec.json.encode(_body(error)), headers=tuple(headers))


def error_event(error: GatewayError) -> bytes:
    """The error inside a stream. Nothing may come after it."""
    return sse.event(msgspec.json.encode(_body(error)), "error")


def printable(text: str, limit: int = 200) -> str:
    """Text from outside, fit to be read: bounded, control characters escaped."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)


def _body(error: GatewayError) -> dict[str, Any]:
    status = _status(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": printable(_message(error), 2000)}}


def _status(error: GatewayError) -> int:
    if isinstance(error, BackendRejected) and 400 <= error.backend_status < 500 and error.backend_status not in _OURS:
        return error.backend_status
    return error.status


def _message(error: GatewayError) -> str:
    if not isinstance(error, BackendRejected) or error.backend_status in _OURS:
        return error.message
    try:
        said = msgspec.json.decode(error.body, type=_Rejected).error
    except NOT_JSON:
        return error.message
    if isinstance(said, _Detail):
        if said.n_prompt_tokens is not None and said.n_ctx is not None:
            # Anthropic's own words: clients look for them, shorten the conversation and ask again.
            return f"prompt is too long: {said.n_prompt_tokens} tokens > {said.n_ctx} maximum"
        said = said.message
    if not isinstance(said, str) or not said:
        return error.message
    if error.backend_status < 500:
        return said
    # Some clients take any failure that speaks of these for a conversation that is too long, and shorten it.
    return error.message if _MISREAD.search(said) else f"{error.message}: {said}"
