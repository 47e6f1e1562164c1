"""Errors in Ollama's words: always `{"error": "text"}`, with Ollama's statuses."""

from __future__ import annotations

import msgspec

from hostler.adapters.base import Operation, WireResponse
from hostler.adapters.errors import (
    BackendError,
    BackendRejected,
    ClientDisconnected,
    GatewayError,
    MethodNotAllowed,
    ModelNotFound,
    ModelUnavailable,
    NotFound,
    TooManyRequests,
    error_headers,
)
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.model_names import ollama_name
from hostler.adapters.ollama import go_compat
from hostler.adapters.ollama.go_compat import quoted
from hostler.adapters.ollama.model_ops import unknown_cloud
from hostler.adapters.ollama.names import of_cloud
from hostler.adapters.ollama.operations import UNKNOWN
from hostler.adapters.ollama.schema import JSON, PLAIN
from hostler.adapters.ollama.truncation import overflow

BUSY = "server busy, please try again.  maximum pending requests exceeded"
TOO_LONG = "the input length exceeds the context length"

_MAX_TEXT = 4000
# Answers about the gateway's own account at a backend: the client can do nothing about them, and its key is not meant.
_OURS = frozenset({401, 402, 403, 407})
_EMBEDS = frozenset({"embed", "embeddings"})


class _Detail(msgspec.Struct, frozen=True):
    message: str


class _Rejected(msgspec.Struct, frozen=True):
    error: str | _Detail


def error_response(error: GatewayError, operation: Operation | None = None) -> WireResponse:
    """The error as a complete answer."""
    headers = error_headers(error)
    if isinstance(error, MethodNotAllowed):
        return WireResponse(status=405, media_type=PLAIN, body=b"405 method not allowed", headers=tuple(headers))
    if isinstance(error, NotFound) and (operation is None or operation.name == UNKNOWN):
        return WireResponse(status=404, media_type=PLAIN, body=b"404 page not found", headers=tuple(headers))
    name = operation.name if operation is not None else ""
    status, text = _said(error, name)
    return WireResponse(status=status, media_type=JSON, body=go_compat.write({"error": text}), headers=tuple(headers))


def error_line(error: GatewayError, operation: str) -> bytes:
    """The error inside a stream, and the stream's end."""
    return go_compat.line({"error": _said(error, operation)[1]})


def _said(error: GatewayError, operation: str) -> tuple[int, str]:
    if isinstance(error, ModelNotFound):
        return _unknown(error.model or "", operation)
    if isinstance(error, TooManyRequests) and error.model is not None:
        return 503, BUSY
    if isinstance(error, BackendRejected):
        return _rejected(error, operation)
    if isinstance(error, ModelUnavailable | BackendError):
        # Whatever ails an engine is a 500 in Ollama; clients tell only this from "busy" and from their own mistakes.
        return 500, _bounded(error.message)
    if isinstance(error, ClientDisconnected):
        return error.status, "request canceled"
    return error.status, _bounded(error.message)


def _unknown(name: str, operation: str) -> tuple[int, str]:
    if of_cloud(name):
        return 403, unknown_cloud()
    name = _bounded(name, 300)
    if operation in ("pull", "create"):
        return 500, "pull model manifest: file does not exist"
    if operation == "show":
        return 404, f"model '{ollama_name(name)}' not found"
    if operation in _EMBEDS and name:
        return 404, f"model {quoted(name)} not found, try pulling it first"
    if operation == "copy":
        return 404, f"model {quoted(name)} not found"
    return 404, f"model '{name}' not found"


def _rejected(error: BackendRejected, operation: str) -> tuple[int, str]:
    text = _message_in(error.body) or error.message
    status = error.backend_status
    if status in _OURS:
        return 500, _bounded(error.message)
    if operation in _EMBEDS and overflow(error) is not None:
        return 400, TOO_LONG
    if operation == "embeddings" and status == 501:
        status = 500
    return status, _bounded(text)


def _message_in(body: bytes) -> str:
    """What a backend's own error says, whichever of the two shapes it has."""
    try:
        said = msgspec.json.decode(body, type=_Rejected).error
    except NOT_JSON:
        return ""
    return said if isinstance(said, str) else said.message


def _bounded(text: str, limit: int = _MAX_TEXT) -> str:
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in cut)
