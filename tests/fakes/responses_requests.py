"""Requests of the responses API, decoded, and as servers without this API get them."""

from __future__ import annotations

import json
from typing import Any

from hostler.adapters.base import Incoming, Upstream
from hostler.adapters.canonical import ChatRequest
from hostler.adapters.openai.adapter import OpenAIAdapter


def responses_request(**body: Any) -> ChatRequest:
    """A request with this body for the model `m`."""
    adapter = OpenAIAdapter()
    operation = next(each for each in adapter.operations if each.path == "/v1/responses")
    content = json.dumps({"model": "m", **body}).encode()
    request = adapter.decode(operation, Incoming(method="POST", path="/v1/responses", body=content))
    assert isinstance(request, ChatRequest)
    return request


def sent_as_chat(upstream: Upstream, request: ChatRequest) -> dict[str, Any]:
    """The body that the backend gets."""
    content: dict[str, Any] = json.loads(
        upstream.build(OpenAIAdapter().expand(request), model="there", stream=True).body
    )
    return content
