"""Lists of models in LM Studio's form, from the catalogue alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.lmstudio_models import ADAPTER, LISTING, decode_request

from hostler.adapters.canonical import (
    Request,
)
from hostler.adapters.errors import ModelNotFound


def respond(request: Request) -> Any:
    response = ADAPTER.model_info(request, LISTING)
    assert (response.status, response.media_type) == (200, "application/json")
    return json.loads(response.body)


def test_the_list_has_lm_studios_form_and_the_real_context() -> None:
    first = respond(decode_request("GET", "/api/v1/models"))["models"][0]
    assert first == {
        "type": "llm", "publisher": "hostler", "key": "a/b", "display_name": "a/b", "architecture": "qwen3",
        "quantization": {"name": "Q4_K_M", "bits_per_weight": 4}, "size_bytes": 5, "params_string": "8.2B",
        "loaded_instances": [{"id": "a/b", "config": {"context_length": 32768}}], "max_context_length": 32768,
        "format": "gguf", "capabilities": {"vision": True, "trained_for_tool_use": True}, "description": None,
    }  # fmt: skip


def test_every_name_is_listed_with_a_loaded_instance() -> None:
    models = respond(decode_request("GET", "/api/v1/models/"))["models"]
    assert [model["key"] for model in models] == ["a/b", "tiny", "cloud", "e"]
    assert all(model["loaded_instances"][0]["id"] == model["key"] for model in models)
    assert [model["type"] for model in models] == ["llm", "llm", "llm", "embedding"]


def test_an_unknown_context_is_left_out() -> None:
    cloud = respond(decode_request("GET", "/api/v1/models"))["models"][2]
    assert cloud["loaded_instances"] == [{"id": "cloud", "config": {}}]
    assert "max_context_length" not in cloud


def test_the_training_context_is_nowhere() -> None:
    lists = [respond(decode_request("GET", path)) for path in ("/api/v1/models", "/api/v0/models")]
    assert "131072" not in json.dumps(lists)


def test_the_v0_list_has_the_state() -> None:
    body = respond(decode_request("GET", "/api/v0/models"))
    assert body["object"] == "list"
    first, _, _, last = body["data"]
    assert first == {
        "id": "a/b", "object": "model", "type": "vlm", "publisher": "hostler", "arch": "qwen3",
        "compatibility_type": "gguf", "quantization": "Q4_K_M", "state": "loaded", "max_context_length": 32768,
        "loaded_context_length": 32768, "capabilities": ["tool_use"],
    }  # fmt: skip
    assert (last["type"], last["state"], "loaded_context_length" in last) == ("embeddings", "not-loaded", False)


@pytest.mark.parametrize("name", ["a/b", "tiny", "a/b/", "hidden"])
def test_a_model_is_found_by_each_of_its_names(name: str) -> None:
    request = decode_request("GET", f"/api/v0/models/{name}", pattern="/api/v0/models/{id:path}", id=name)
    assert respond(request)["id"] == name.rstrip("/")


def test_load_is_answered_at_once_with_the_real_context() -> None:
    request = decode_request("POST", "/api/v1/models/load", {"model": "tiny", "context_length": 131072})
    assert respond(request) == {
        "type": "llm", "instance_id": "tiny", "load_time_seconds": 0.0, "status": "loaded",
        "load_config": {"context_length": 32768},
    }  # fmt: skip


def test_loading_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound) as raised:
        respond(decode_request("POST", "/api/v1/models/load", {"model": "x"}))
    response = ADAPTER.error_response(raised.value)
    assert (response.status, json.loads(response.body)["error"]["code"]) == (404, "model_not_found")
