"""Errors in Ollama's form: always `{"error": "text"}`, with Ollama's statuses and messages."""

from __future__ import annotations

from hostler.adapters.base import Operation, WireResponse
from hostler.adapters.error_body import is_overflow, read_error
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
    client_status,
    error_headers,
    is_account_error,
)
from hostler.adapters.model_names import ollama_name
from hostler.adapters.ollama import go_compat
from hostler.adapters.ollama.go_compat import quote
from hostler.adapters.ollama.model_ops import cloud_disabled
from hostler.adapters.ollama.names import is_cloud_model
from hostler.adapters.ollama.operations import UNKNOWN
from hostler.adapters.ollama.schema import JSON, PLAIN

SERVER_BUSY = "server busy, please try again.  maximum pending requests exceeded"
INPUT_TOO_LONG = "the input length exceeds the context length"

_MAX_TEXT = 4000
_EMBEDS = frozenset({"embed", "embeddings"})


def error_response(error: GatewayError, operation: Operation | None = None) -> WireResponse:
    """The error as a response."""
    headers = error_headers(error)
    if isinstance(error, MethodNotAllowed):
        return WireResponse(status=405, media_type=PLAIN, body=b"405 method not allowed", headers=tuple(headers))
    if isinstance(error, NotFound) and (operation is None or operation.name == UNKNOWN):
        return WireResponse(status=404, media_type=PLAIN, body=b"404 page not found", headers=tuple(headers))
    name = operation.name if operation is not None else ""
    status, text = _status_and_message(error, name)
    return WireResponse(
        status=status, media_type=JSON, body=go_compat.encode_json({"error": text}), headers=tuple(headers)
    )


def error_line(error: GatewayError, operation: str) -> bytes:
    """The error inside a stream, which it ends."""
    return go_compat.encode_line({"error": _status_and_message(error, operation)[1]})


def _status_and_message(error: GatewayError, operation: str) -> tuple[int, str]:
    if isinstance(error, ModelNotFound):
        return _unknown_model(error.model or "", operation)
    if isinstance(error, TooManyRequests) and error.model is not None and not error.final:
        return 503, SERVER_BUSY
    if isinstance(error, BackendRejected):
        return _rejected(error, operation)
    if isinstance(error, ModelUnavailable | BackendError):
        # Every engine failure is a 500 in Ollama; clients distinguish only this, "busy" and their own errors.
        return 500, _truncated(error.message)
    if isinstance(error, ClientDisconnected):
        return error.status, "request canceled"
    return error.status, _truncated(error.message)


def _unknown_model(name: str, operation: str) -> tuple[int, str]:
    if is_cloud_model(name):
        return 403, cloud_disabled()
    name = _truncated(name, 300)
    if operation in ("pull", "create"):
        return 500, "pull model manifest: file does not exist"
    if operation == "show":
        return 404, f"model '{ollama_name(name)}' not found"
    if operation in _EMBEDS and name:
        return 404, f"model {quote(name)} not found, try pulling it first"
    if operation == "copy":
        return 404, f"model {quote(name)} not found"
    return 404, f"model '{name}' not found"


def _rejected(error: BackendRejected, operation: str) -> tuple[int, str]:
    details = read_error(error.body)
    text = (details.message if details is not None else "") or error.message
    if is_account_error(error):
        return 500, _truncated(error.message)
    if operation in _EMBEDS and is_overflow(error):
        return 400, INPUT_TOO_LONG
    status = client_status(error) if error.request_fault else error.backend_status
    if operation == "embeddings" and status == 501:
        status = 500
    return status, _truncated(text)


def _truncated(text: str, limit: int = _MAX_TEXT) -> str:
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in cut)
