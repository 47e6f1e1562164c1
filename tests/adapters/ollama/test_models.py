"""Lists and details of models in Ollama's form, from the catalogue alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import ollama
import pytest
from fakes.ollama_harness import SMOL, OllamaHarness

from hostler.adapters.canonical import ModelInfoRequest
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.ollama.models import human_number

HEX = "0123456789abcdef"


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def test_tags_list_every_name_newest_first(harness: OllamaHarness) -> None:
    models = harness.respond_json("tags")["models"]
    assert [model["name"] for model in models] == [
        "Able:latest", "smol:latest", "tiny:latest", "vectors:latest", "org/sub-far-v1:latest",
    ]  # fmt: skip
    assert models[1] == {
        "name": "smol:latest",
        "model": "smol:latest",
        "modified_at": "2023-11-14T22:13:20.25Z",
        "size": 98362745,
        "digest": "ab" * 32,
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "134.52M",
            "quantization_level": "Q4_1",
            "context_length": 4096,
            "embedding_length": 576,
        },
        "capabilities": ["completion"],
    }


def test_a_model_without_facts_has_every_field_that_clients_require(harness: OllamaHarness) -> None:
    far = harness.respond_json("tags")["models"][-1]
    assert far["size"] > 0 and len(far["digest"]) == 64 and set(far["digest"]) <= set(HEX)
    assert all(isinstance(far["details"][name], str) for name in ("format", "family", "parameter_size"))
    info = harness.respond_json("show", {"model": "org/sub/far@v1"})["model_info"]
    assert info[f"{info['general.architecture']}.context_length"] == 32768


def test_without_models_the_list_is_empty() -> None:
    empty = OllamaHarness(ModelList())
    assert empty.respond_json("tags") == empty.respond_json("ps") == {"models": []}


def test_an_unlisted_model_can_be_shown() -> None:
    hidden = msgspec.structs.replace(SMOL, listed=False)
    harness = OllamaHarness(ModelList(cards=(hidden,), index={"smol": hidden}))
    assert harness.respond_json("tags") == {"models": []}
    assert harness.respond("show", {"model": "smol"}).status == 200


def test_ps_lists_no_model_whose_state_is_not_known() -> None:
    cards = (ModelCard(name="cloud", state="loaded", state_known=False), ModelCard(name="here", state="loaded"))
    harness = OllamaHarness(ModelList(cards=cards, index={card.name: card for card in cards}))
    assert [model["name"] for model in harness.respond_json("ps")["models"]] == ["here:latest"]
    assert len(harness.respond_json("tags")["models"]) == 2


def test_ps_shows_loaded_and_loading_models_with_their_expiry(harness: OllamaHarness) -> None:
    models = harness.respond_json("ps")["models"]
    assert [model["name"] for model in models] == ["org/sub-far-v1:latest", "vectors:latest", "smol:latest"]
    assert models[0]["expires_at"].startswith("2318")
    assert {name: models[2][name] for name in ("size", "size_vram", "context_length", "expires_at")} == {
        "size": 150_000_000,
        "size_vram": 0,
        "context_length": 4096,
        "expires_at": "2023-11-14T22:18:20Z",
    }
    assert len(models[2]["details"]) == 6


def test_show_has_only_the_real_context_length(harness: OllamaHarness) -> None:
    result = harness.respond_json("show", {"name": "smol"})
    info = result["model_info"]
    assert {key: info[key] for key in info if key.endswith("context_length")} == {"llama.context_length": 4096}
    assert result["parameters"] == "num_ctx                        4096"
    assert "8192" not in json.dumps(result)
    assert info["general.parameter_count"] == 134515008 and info["tokenizer.ggml.tokens"] is None
    assert not {"general.name", "tokenizer.chat_template"} & set(info)
    assert (result["template"], result["capabilities"]) == ("{{ messages }}", ["completion"])


def test_copilot_gets_the_requested_name_as_basename(harness: OllamaHarness) -> None:
    result = harness.respond_json("show", {"model": "tiny"}, headers={"user-agent": "GitHubCopilotChat/0.30"})
    assert result["model_info"]["general.basename"] == "tiny"
    assert "general.basename" not in harness.respond_json("show", {"model": "tiny"})["model_info"]


def test_the_sdk_reads_every_list(harness: OllamaHarness) -> None:
    assert len(ollama.ListResponse.model_validate_json(harness.respond("tags").body).models) == 5
    assert len(ollama.ProcessResponse.model_validate_json(harness.respond("ps").body).models) == 3
    assert ollama.ShowResponse.model_validate_json(harness.respond("show", {"model": "smol"}).body).modelinfo


@pytest.mark.parametrize(
    ("count", "message"),
    [(134515008, "134.52M"), (3212749888, "3.2B"), (7_000_000_000, "7B"), (22_000_000, "22M"), (1500, "2K"), (12, "12")],
)  # fmt: skip
def test_parameter_counts_are_human_readable(count: int, message: str) -> None:
    assert human_number(count) == message


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        ("show", {"model": "Nope"}, 404, "model 'Nope:latest' not found"),
        ("show", {}, 400, "model is required"),
        ("delete", {"model": "a b"}, 400, 'name "a b" is invalid'),
        ("copy", {"source": "", "destination": "x"}, 400, 'source "" is invalid'),
        ("create", {}, 400, "invalid model name"),
        ("push", {}, 400, "model is required"),
        ("pull", {}, 400, "invalid model name"),
        ("pull", b"", 400, "missing request body"),
        ("me", b"", 401, "unauthorized"),
        ("signout", b"", 401, "you are not currently signed in"),
        ("search", {"query": "x"}, 403, "ollama cloud is disabled: web search is unavailable"),
        ("search", b"", 400, "missing request body"),
        ("fetch", {"url": "x"}, 403, "ollama cloud is disabled: web fetch is unavailable"),
    ],
)
def test_unsupported_operations_have_a_reason(
    harness: OllamaHarness, name: str, body: Any, status: int, message: str
) -> None:
    response = harness.respond(name, body)
    assert response.status == status
    error = json.loads(response.body)["error"]
    assert message in error if "supported" in message else message == error


def test_a_push_fails_in_the_stream(harness: OllamaHarness) -> None:
    response = harness.respond("push", {"model": "nope"})
    assert response.status == 200 and json.loads(response.body.splitlines()[-1]) == {"error": 'model "nope" not found'}


def test_minor_routes_are_answered(harness: OllamaHarness) -> None:
    assert harness.respond_json("version") == {"version": "0.40.12"}
    assert harness.respond_json("status") == {"cloud": {"disabled": True, "source": "env"}}
    assert harness.respond_json("recommendations") == {"recommendations": []}


def test_every_model_info_route_is_a_probe(harness: OllamaHarness) -> None:
    for operation in harness.adapter.operations:
        if operation.model_info:
            assert isinstance(harness.decode(operation.name, {"model": "smol"}), ModelInfoRequest)
