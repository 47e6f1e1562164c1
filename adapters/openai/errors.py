"""Errors in OpenAI's form, as a response and inside a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Operation, WireResponse
from hostler.adapters.error_body import is_overflow, is_passed_on, read_error
from hostler.adapters.errors import (
    BackendRejected,
    GatewayError,
    ModelNotFound,
    client_status,
    error_headers,
    is_account_error,
    is_final,
    printable,
)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Wires whose errors have this protocol's form.
_OPENAI_ERRORS = frozenset({"openai", "llamacpp"})


def error_response(error: GatewayError, operation: Operation | None = None) -> WireResponse:
    """The error as a response. An error of an engine of this protocol is passed on as it came.

    Clients of the responses API (Codex) send a request again after every status but 400, whatever the headers say, so
    that is the status of a final failure there.
    """
    headers = error_headers(error)
    if isinstance(error, BackendRejected) and error.wire in _OPENAI_ERRORS and is_passed_on(error):
        media_type = next((v for n, v in error.headers.items() if n.lower() == "content-type"), "application/json")
        details = read_error(error.body)
        if "json" not in media_type.lower() and details is not None and not details.is_text:
            media_type = "application/json"
        return WireResponse(status=error.backend_status, media_type=media_type, body=error.body, headers=tuple(headers))
    body = msgspec.json.encode({"error": error_body(error)})
    status = client_status(error)
    if status >= 500 and operation is not None and operation.name == "responses" and is_final(error):
        status = 400
    return WireResponse(status=status, body=body, headers=tuple(headers))


def error_event(error: GatewayError) -> bytes:
    """The error inside a chat or completions stream, and the end of the stream."""
    return sse.event(msgspec.json.encode({"error": error_body(error)})) + b"data: [DONE]\n\n"


def responses_error_events(error: GatewayError, response: dict[str, Any], sequence_number: int = 0) -> bytes:
    """The error inside a stream of the responses API, which it ends: `response` as failed, then the error itself.

    Codex reads only the first event. It tries again after each of the codes that a failed response may have, except
    `invalid_prompt`.
    """
    body = error_body(error)
    event = {"type": "error", "sequence_number": sequence_number + 1}
    event |= {"code": body["code"], "message": body["message"], "param": body["param"]}
    code = body["code"]
    if code != "context_length_exceeded":
        limited = client_status(error) == 429
        code = "invalid_prompt" if is_final(error) else "rate_limit_exceeded" if limited else "server_error"
    response = {**response, "status": "failed", "error": {"code": code, "message": body["message"]}}
    failed = {"type": "response.failed", "sequence_number": sequence_number, "response": response}
    return sse.event(msgspec.json.encode(failed), "response.failed") + sse.event(msgspec.json.encode(event), "error")


def error_body(error: GatewayError) -> dict[str, Any]:
    """The object under `error`."""
    status = client_status(error)
    param = error.param or ("model" if isinstance(error, ModelNotFound) else None)
    code = "context_length_exceeded" if is_overflow(error) else error.code
    return {
        "message": printable(client_message(error), 2000),
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": None if param is None else printable(param),
        "code": code,
    }


def client_message(error: GatewayError) -> str:
    """The message for the client: a backend's own where it concerns the request.

    A failure of a backend of another protocol keeps the gateway's message, since clients search its text. 501 is none: it
    says what a model cannot do.
    """
    if not isinstance(error, BackendRejected) or is_account_error(error):
        return error.message
    failed = error.backend_status >= 500 and error.backend_status != 501
    if error.wire not in _OPENAI_ERRORS and failed and not error.request_fault:
        return error.message
    details = read_error(error.body)
    return (details.message if details is not None else "") or error.message
