"""Errors in OpenAI's words: as a whole answer, and inside a stream that has begun."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import WireResponse
from hostler.adapters.errors import (
    BackendRejected,
    GatewayError,
    ModelNotFound,
    error_headers,
)
from hostler.adapters.json_body import NOT_JSON

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Answers about the gateway's own account at a backend: the client can do nothing about them, and its key is not meant.
_OURS = frozenset({401, 402, 403, 407})
# Wires whose errors have this protocol's shape.
_SAME = frozenset({"openai", "llamacpp"})


def refusal(error: GatewayError) -> WireResponse:
    """The error as a complete answer. What an engine of this protocol refused is passed on as it came."""
    headers = error_headers(error)
    if isinstance(error, BackendRejected) and error.wire in _SAME and error.backend_status not in _OURS:
        media_type = next((v for n, v in error.headers.items() if n.lower() == "content-type"), "application/json")
        return WireResponse(status=error.backend_status, media_type=media_type, body=error.body, headers=tuple(headers))
    status = status_of(error)
    return WireResponse(status=status, body=msgspec.json.encode({"error": error_body(error)}), headers=tuple(headers))


def error_event(error: GatewayError) -> bytes:
    """The error inside a chat or completions stream, and the stream's end."""
    return sse.event(msgspec.json.encode({"error": error_body(error)})) + b"data: [DONE]\n\n"


def response_error_event(error: GatewayError, number: int = 0) -> bytes:
    """The error inside a responses stream, whose event of this number it is."""
    body = error_body(error)
    event = {"type": "error", "sequence_number": number}
    event |= {"code": body["code"], "message": body["message"], "param": body["param"]}
    return sse.event(msgspec.json.encode(event), "error")


def status_of(error: GatewayError) -> int:
    """The status to answer with: what a backend refused for the client's own mistake stays the client's."""
    if isinstance(error, BackendRejected) and 400 <= error.backend_status < 500 and error.backend_status not in _OURS:
        return error.backend_status
    return error.status


def error_body(error: GatewayError) -> dict[str, Any]:
    """What stands in `error`."""
    status = status_of(error)
    param = error.param or ("model" if isinstance(error, ModelNotFound) else None)
    return {
        "message": shown(message_of(error), 2000),
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": None if param is None else shown(param),
        "code": error.code,
    }


class _Said(msgspec.Struct):
    message: str


class _Refused(msgspec.Struct):
    error: _Said | str


def message_of(error: GatewayError) -> str:
    """What to say of it: where a backend's refusal cannot be passed on as it came, its own words are told.

    A failure of a backend of another protocol stays in the gateway's words: clients look for meanings in them.
    """
    told = isinstance(error, BackendRejected) and (error.wire in _SAME or error.backend_status < 500)
    if told and isinstance(error, BackendRejected) and error.backend_status not in _OURS:
        try:
            said = msgspec.json.decode(error.body, type=_Refused).error
        except NOT_JSON:
            return error.message
        return (said if isinstance(said, str) else said.message) or error.message
    return error.message


def shown(text: str, limit: int = 200) -> str:
    """Text from outside, fit to be read: bounded, control characters escaped."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)
