"""Requests for engines, on llama-server's own routes and in other protocols."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.llamacpp_requests import ADAPTER, UPSTREAM, decode_request, sent

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.base import Incoming
from hostler.adapters.canonical import (
    ChatRequest,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream


def test_the_engine_gets_its_own_name_of_the_model() -> None:
    assert sent(decode_request("POST", "/tokenize", {"model": "alias", "content": "x"}))["model"] == "there"
    assert sent(decode_request("POST", "/tokenize", {"content": "x"}))["model"] == "there"
    assert sent(decode_request("POST", "/unknown", {"x": 1})) == {"x": 1}
    lora = decode_request("GET", "/lora-adapters", query="a=1&model=alias&xmodel=2")
    assert UPSTREAM.build(lora, model="t/here", stream=True).path == "/lora-adapters?a=1&model=t%2Fhere&xmodel=2"


def test_a_list_as_body_is_forwarded_untouched() -> None:
    request = decode_request("POST", "/lora-adapters", b'[{"id": 0, "scale": 0.5}]', query="model=a")
    assert request.model == "a"
    assert UPSTREAM.build(request, model="a", stream=True).body == b'[{"id": 0, "scale": 0.5}]'


@pytest.mark.parametrize(
    ("fields", "streams"),
    [
        ({"prompt": "x"}, True), ({"prompt": [1, 2]}, True), ({"prompt": ["x", 2]}, True), ({"prompt": []}, True),
        ({"prompt": ["x", "y"]}, False), ({"prompt": [[1], [2]]}, False), ({"prompt": "x", "n": 2}, False),
        ({"prompt": "x", "response_fields": ["content"]}, False), ({"prompt": "x", "n": 1}, True),
    ],
)  # fmt: skip
def test_a_single_whole_completion_is_requested_as_a_stream(fields: dict[str, Any], streams: bool) -> None:
    request = decode_request("POST", "/completion", fields)
    assert sent(request).get("stream", False) is streams
    assert "stream" not in sent(request, stream=False)


def test_native_requests_are_unsupported_by_other_backends() -> None:
    for request in (
        decode_request("POST", "/tokenize", {"content": "x"}),
        decode_request("POST", "/unknown", {"model": "a"}),
    ):
        with pytest.raises(BadRequest, match="does not support"):
            OpenAIUpstream().build(ADAPTER.expand(request), model="a", stream=True)


def test_an_engine_gets_requests_in_every_protocol_that_it_speaks() -> None:
    chat = OpenAIAdapter().decode(
        next(one for one in OpenAIAdapter().operations if one.name == "chat"),
        Incoming(method="POST", path="/v1/chat/completions", body=b'{"messages": []}'),
    )
    assert isinstance(chat, ChatRequest)
    assert UPSTREAM.build(chat, model="a", stream=True) == OpenAIUpstream().build(chat, model="a", stream=True)
    assert [UPSTREAM.speaks(wire) for wire in ("openai", "llamacpp", "anthropic", "ollama")] == [
        True,
        True,
        False,
        False,
    ]
    assert LlamaCppUpstream(OpenAIUpstream("anthropic")).speaks("anthropic")


@pytest.mark.parametrize("given", [{}, {"return_progress": True}, {"return_progress": False}])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions", "/v1/completions"])
def test_streams_are_asked_for_the_progress_of_the_prompt(path: str, stream: bool, given: dict[str, Any]) -> None:
    body = {"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": stream, **given}
    if path == "/completion":
        request = decode_request("POST", path, body)
    else:
        adapter = OpenAIAdapter()
        operation = next(each for each in adapter.operations if each.path == path)
        request = adapter.decode(operation, Incoming(method="POST", path=path, body=json.dumps(body).encode()))
    asked = json.loads(LlamaCppUpstream(progress=True).build(request, model="m", stream=True).body)
    assert asked.get("return_progress") is (True if stream else given.get("return_progress"))
    # Nothing changes where no progress is shown.
    off = json.loads(UPSTREAM.build(request, model="m", stream=True).body)
    assert off.get("return_progress") is given.get("return_progress")


def test_translated_streams_are_asked_for_the_progress_as_well() -> None:
    adapter = AnthropicAdapter()
    operation = next(each for each in adapter.operations if each.name == "messages")
    body = {"model": "m", "max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    decoded = adapter.decode(operation, Incoming(method="POST", path=operation.path, body=json.dumps(body).encode()))
    wire = LlamaCppUpstream(progress=True).build(adapter.expand(decoded), model="m", stream=True)
    assert json.loads(wire.body)["return_progress"] is True
