"""OpenAI's requests: only the fields that decide their route are decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    ModelInfoRequest,
    Output,
    Passthrough,
    RerankRequest,
)
from hostler.adapters.errors import BadRequest

Chat = Callable[..., ChatRequest]


def test_only_the_fields_that_decide_the_route_are_decoded(chat: Chat) -> None:
    request = chat(stream=True, stream_options={"include_usage": True}, n=2, unknown={"x": [1]})
    assert request.model == "a"
    assert request.output == Output(stream=True, include_usage=True, choices=2)
    assert request.conversation is None


@pytest.mark.parametrize("body", [{"messages": []}, {"model": None, "messages": []}, {"model": "", "messages": []}])
def test_no_model_is_none(decode_request: Any, body: dict[str, Any]) -> None:
    assert decode_request("/v1/chat/completions", body).model is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 1}, "model"),
        ({"stream": "true"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"response_format": {"type": 1}}, "response_format.type"),
    ],
)
def test_an_invalid_field_is_named(chat: Chat, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, b'"json"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}}}, b'{"a": 1}'),
        ({"json_schema": {"a": 1}}, b'{"a": 1}'),
    ],
)
def test_structured_output_is_decoded(chat: Chat, fields: dict[str, Any], schema: bytes | None) -> None:
    found = chat(**fields).output.schema
    assert (None if found is None else bytes(found)) == schema


def test_other_operations_become_their_own_kinds(decode_request: Any) -> None:
    assert isinstance(decode_request("/v1/completions", {"model": "a", "prompt": "x"}), CompletionRequest)
    assert isinstance(decode_request("/v1/embeddings", {"model": "a", "input": "x"}), EmbedRequest)
    assert isinstance(decode_request("/v1/rerank", {"model": "a", "query": "x"}), RerankRequest)
    assert decode_request("/v1/responses", {"model": "a", "stream": True}).output.stream
    assert isinstance(decode_request("/v1/audio/speech", {"model": "a"}), Passthrough)


def test_model_info_requests_have_their_kind_and_model(decode_request: Any) -> None:
    assert decode_request("/models/").kind == "models"
    probe = decode_request("/v1/models/{id:path}", path_params={"id": "org/model:q4/"})
    assert isinstance(probe, ModelInfoRequest)
    assert (probe.kind, probe.model) == ("model", "org/model:q4")
