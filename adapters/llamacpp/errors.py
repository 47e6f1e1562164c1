"""Errors in llama-server's form: `{"error": {"code", "message", "type"}}`, the code being the status."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Operation, WireResponse
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError, client_status, error_headers, printable
from hostler.adapters.llamacpp.operations import OTHER_GET, UNKNOWN
from hostler.adapters.llamacpp.schema import JSON
from hostler.adapters.openai.errors import client_message
from hostler.adapters.openai.errors import error_response as openai_error_response

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def error_response(error: GatewayError, operation: Operation | None = None) -> WireResponse:
    """The error as a response. An engine's own error is passed on as it came."""
    if isinstance(error, BackendRejected):
        response = openai_error_response(error)
        if response.body == error.body:
            return response
    headers = error_headers(error)
    status = client_status(error)
    if operation is not None and operation.name in UNKNOWN and isinstance(error, BadRequest) and error.param == "model":
        # An unknown path, and no model that could be asked: none is named or running.
        status = 404 if operation.name == OTHER_GET else 503
    return respond({"error": error_body(client_message(error), status)}, status=status, headers=tuple(headers))


def respond(body: object, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> WireResponse:
    return WireResponse(status=status, media_type=JSON, body=msgspec.json.encode(body), headers=headers)


def error_answer(status: int, message: str, kind: str | None = None) -> WireResponse:
    """An error for something that llama-server supports and the gateway does not."""
    return respond({"error": error_body(message, status, kind)}, status=status)


def error_event(error: GatewayError) -> bytes:
    """The error inside a stream."""
    return sse.event(msgspec.json.encode({"error": error_body(client_message(error), client_status(error))}))


def error_body(message: str, status: int, kind: str | None = None) -> dict[str, Any]:
    """The object under `error`."""
    default = "invalid_request_error" if status < 500 else "server_error"
    return {"code": status, "message": printable(message, 2000), "type": kind or _TYPES.get(status, default)}
