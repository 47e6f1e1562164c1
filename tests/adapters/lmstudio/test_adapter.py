"""LM Studio's routes are decoded; inference on OpenAI's paths is delegated."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.lmstudio_models import ADAPTER, LISTING, decode_request

from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    LoadRequest,
    ModelInfoRequest,
    Origin,
    ResponseHead,
)
from hostler.adapters.errors import BadRequest, NotFound
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.registry import check_conflicts


def test_no_path_conflicts_with_another_protocol() -> None:
    check_conflicts([OpenAIAdapter(), OllamaAdapter(), LlamaCppAdapter(), ADAPTER])


def test_unload_needs_the_scope_operate() -> None:
    request = decode_request("POST", "/api/v1/models/unload", {"instance_id": "tiny"})
    assert isinstance(request, LoadRequest)
    assert (request.kind, request.model) == ("unload", "tiny")
    operation = next(one for one in ADAPTER.operations if one.name == "unload")
    assert (operation.scope, operation.writes) == ("operate", True)
    encoder = ADAPTER.encoder(request, response_id="x", created=1, progress="thinking")
    encoder.start(ResponseHead())
    assert (encoder.streaming, json.loads(encoder.finish())) == (False, {"instance_id": "tiny"})


def test_load_and_unload_need_a_model() -> None:
    for path in ("/api/v1/models/load", "/api/v1/models/unload"):
        for body in ({}, {"model": 1}, b"[]"):
            with pytest.raises(BadRequest):
                decode_request("POST", path, body)


@pytest.mark.parametrize(
    ("path", "body", "kind", "name"),
    [
        ("/api/v0/chat/completions", {"model": "a", "messages": []}, ChatRequest, "chat"),
        ("/api/v0/completions", {"model": "a", "prompt": "x"}, CompletionRequest, "completions"),
        ("/api/v0/embeddings", {"model": "a", "input": "x"}, EmbedRequest, "embeddings"),
    ],
)
def test_inference_is_delegated_to_openai(path: str, body: Any, kind: type, name: str) -> None:
    request = decode_request("POST", path, body)
    assert type(request) is kind
    assert (request.origin.wire, request.origin.operation, request.model) == ("openai", name, "a")


def test_unknown_info_is_not_found() -> None:
    with pytest.raises(NotFound):
        ADAPTER.model_info(ModelInfoRequest(origin=Origin(wire="lmstudio", operation="x"), kind="x"), LISTING)
