"""Errors in the form of LM Studio's v1 API."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import GatewayError, ModelNotFound, TooManyRequests, client_status, error_headers
from hostler.adapters.openai.errors import error_body as openai_error_body


def error_body(error: GatewayError) -> dict[str, Any]:
    """The object under `error`: OpenAI's fields with LM Studio's types."""
    # A full queue, or a pause that is too long, is no fault of the request.
    is_own = client_status(error) < 500 and not isinstance(error, TooManyRequests)
    kind = "invalid_request" if is_own else "internal_error"
    return openai_error_body(error) | {"type": "model_not_found" if isinstance(error, ModelNotFound) else kind}


def error_response(error: GatewayError) -> WireResponse:
    """The error as a response."""
    body = msgspec.json.encode({"error": error_body(error)})
    return WireResponse(status=client_status(error), body=body, headers=tuple(error_headers(error)))
