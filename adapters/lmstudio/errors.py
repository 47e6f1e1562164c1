"""Errors in LM Studio's words, as its own interface tells them."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import GatewayError, ModelNotFound, client_status
from hostler.adapters.openai.errors import error_body as openai_error_body
from hostler.adapters.openai.errors import error_response as openai_error_response


def error_body(error: GatewayError) -> dict[str, Any]:
    """What stands in `error`: OpenAI's fields, and LM Studio's types."""
    status = client_status(error)
    kind = "invalid_request" if status < 500 else "internal_error"
    return openai_error_body(error) | {"type": "model_not_found" if isinstance(error, ModelNotFound) else kind}


def error_response(error: GatewayError) -> WireResponse:
    """The error as a complete answer."""
    plain = openai_error_response(error)
    return WireResponse(
        status=client_status(error), body=msgspec.json.encode({"error": error_body(error)}), headers=plain.headers
    )
