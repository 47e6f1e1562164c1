"""LM Studio's own chat is decoded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import ChatRequest, Media, Request, Text
from hostler.adapters.errors import BadRequest
from hostler.adapters.lmstudio.adapter import LMStudioAdapter

ADAPTER = LMStudioAdapter()


def requested(path: str, **body: Any) -> Request:
    operation = next(each for each in ADAPTER.operations if each.path == path)
    return ADAPTER.decode(
        operation, Incoming(method="POST", path=path, body=json.dumps({"model": "a", **body}).encode())
    )


def test_a_chat_is_decoded() -> None:
    parts = [{"type": "text", "content": "What?"}, {"type": "image", "data_url": "data:image/png;base64,AAAA"}]
    request = requested(
        "/api/v1/chat", input=parts, system_prompt="Be brief.", temperature=0.5, top_k=5, max_output_tokens=7,
        reasoning="off", store=True, context_length=1,
    )  # fmt: skip
    assert isinstance(request, ChatRequest)
    assert request.conversation is not None
    system, user = request.conversation.messages
    assert (system.role, system.parts) == ("system", (Text(text="Be brief."),))
    assert user.parts == (Text(text="What?"), Media(kind="image", data="AAAA", mime="image/png"))
    sampling = request.conversation.sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.5, 5, 7)
    assert request.conversation.thinking is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"), ({"input": 1}, "input"), ({"input": [{"type": "sound"}]}, "input[0]"),
        ({"input": "x", "reasoning": "much"}, "reasoning"), ({"input": "x", "integrations": ["mcp/x"]}, "integrations"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        requested("/api/v1/chat", **body)
    operation = next(each for each in ADAPTER.operations if each.path == "/api/v1/chat")
    error = json.loads(ADAPTER.error_response(caught.value, operation).body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request", param)
