"""Errors in Anthropic's form, as a response and inside a stream."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import WireResponse
from hostler.adapters.error_body import is_passed_on, read_error
from hostler.adapters.errors import (
    BackendRejected,
    GatewayError,
    client_status,
    error_headers,
    is_account_error,
    is_final,
    printable,
)

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


def error_response(error: GatewayError) -> WireResponse:
    """The error as a response. An error of a backend of this protocol is passed on as it came."""
    headers = error_headers(error)
    if isinstance(error, BackendRejected) and error.wire == WIRE and is_passed_on(error):
        return WireResponse(status=error.backend_status, body=error.body, headers=tuple(headers))
    return WireResponse(status=client_status(error), body=msgspec.json.encode(_body(error)), headers=tuple(headers))


def error_event(error: GatewayError) -> bytes:
    """The error inside a stream, which it ends."""
    return sse.event(msgspec.json.encode(_body(error)), "error")


def _body(error: GatewayError) -> dict[str, Any]:
    status = client_status(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    if status >= 500 and is_final(error):
        kind = "api_error"  # clients send a request again after an overloaded_error, whatever the headers say
    return {"type": "error", "error": {"type": kind, "message": printable(_message(error), 2000)}}


def _message(error: GatewayError) -> str:
    if not isinstance(error, BackendRejected) or is_account_error(error):
        return error.message
    details = read_error(error.body)
    if details is None or not details.message:
        return error.message
    if details.is_overflow:
        # Anthropic's own message: clients search for it, shorten the conversation and retry.
        if details.sizes is not None:
            tokens, limit = details.sizes
            return f"prompt is too long: {tokens} tokens > {limit} maximum"
        known = "prompt is too long" in details.message
        return details.message if known else f"prompt is too long: {details.message}"
    if error.backend_status < 500 or error.request_fault:
        return details.message
    # Some clients take any failure that mentions these for a conversation that is too long, and shorten it.
    return error.message if _MISLEADING.search(details.message) else f"{error.message}: {details.message}"
