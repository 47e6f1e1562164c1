"""Errors in Anthropic's form, as a response and inside a stream."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import WireResponse
from hostler.adapters.errors import (
    ACCOUNT_STATUSES,
    BackendRejected,
    GatewayError,
    client_status,
    error_headers,
    printable,
)
from hostler.adapters.json_body import NOT_JSON

# Statuses are the same in every protocol; clients that know only Anthropic's 529 retry a 503 all the same.
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

_MISLEADING = re.compile("context|token|too long", re.IGNORECASE)


class RejectionDetail(msgspec.Struct, frozen=True, kw_only=True):
    message: Any = None
    type: Any = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A backend's error, in OpenAI's, llama-server's or Anthropic's form."""

    error: RejectionDetail | str | None = None


def error_response(error: GatewayError) -> WireResponse:
    """The error as a response. An error of a backend of this protocol is passed on as it came."""
    headers = error_headers(error)
    if isinstance(error, BackendRejected) and error.wire == WIRE and error.backend_status not in ACCOUNT_STATUSES:
        return WireResponse(status=error.backend_status, body=error.body, headers=tuple(headers))
    return WireResponse(status=client_status(error), body=msgspec.json.encode(_body(error)), headers=tuple(headers))


def error_event(error: GatewayError) -> bytes:
    """The error inside a stream, which it ends."""
    return sse.event(msgspec.json.encode(_body(error)), "error")


def _body(error: GatewayError) -> dict[str, Any]:
    status = client_status(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": printable(_message(error), 2000)}}


def _message(error: GatewayError) -> str:
    if not isinstance(error, BackendRejected) or error.backend_status in ACCOUNT_STATUSES:
        return error.message
    try:
        detail = msgspec.json.decode(error.body, type=Rejection).error
    except NOT_JSON:
        return error.message
    if isinstance(detail, RejectionDetail):
        if detail.n_prompt_tokens is not None and detail.n_ctx is not None:
            # Anthropic's own message: clients search for it, shorten the conversation and retry.
            return f"prompt is too long: {detail.n_prompt_tokens} tokens > {detail.n_ctx} maximum"
        detail = detail.message
    if not isinstance(detail, str) or not detail:
        return error.message
    if error.backend_status < 500:
        return detail
    # Some clients take any failure that mentions these for a conversation that is too long, and shorten it.
    return error.message if _MISLEADING.search(detail) else f"{error.message}: {detail}"
