"""The list of models in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.errors import (
    ModelNotFound,
)
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.adapter import OpenAIAdapter

CARDS = (
    ModelCard(name="big", aliases=("gpt-4", "b"), context=8192, created=17, state="loaded"),
    ModelCard(name="vectors", context=512, created=18, capabilities=("embedding",)),
    ModelCard(name="small", context=2048, created=19),
    ModelCard(name="hidden", listed=False),
)


LISTING = ModelList(
    cards=CARDS, index={name: card for card in CARDS for name in (card.name, *card.aliases)}, active="big"
)


def test_the_list_has_the_active_model_first_then_all_names_in_order(
    adapter: OpenAIAdapter, decode_request: Any
) -> None:
    response = json.loads(adapter.model_info(decode_request("/v1/models"), LISTING).body)
    assert [entry["id"] for entry in response["data"]] == ["big", "b", "gpt-4", "small", "vectors"]
    assert response["data"][2] == {
        "id": "gpt-4", "object": "model", "created": 17, "owned_by": "hostler",
        "context_length": 8192, "max_model_len": 8192, "status": {"value": "loaded"},
    }  # fmt: skip


def test_the_list_has_the_input_modalities(adapter: OpenAIAdapter, decode_request: Any) -> None:
    seeing = ModelCard(name="seeing", capabilities=("completion", "vision"))
    entry = json.loads(adapter.model_info(decode_request("/v1/models"), ModelList(cards=(seeing,))).body)["data"][0]
    assert entry["architecture"] == {"input_modalities": ["text", "image"], "output_modalities": ["text"]}


def test_a_model_is_shown_by_name_or_alias(adapter: OpenAIAdapter, decode_request: Any) -> None:
    for name in ("big", "gpt-4", "hidden"):
        probe = decode_request("/models/{id:path}", path_params={"id": name})
        assert json.loads(adapter.model_info(probe, LISTING).body)["id"] == name


def test_the_error_for_an_unknown_model_lists_the_known_ones(adapter: OpenAIAdapter, decode_request: Any) -> None:
    with pytest.raises(ModelNotFound) as caught:
        adapter.model_info(decode_request("/models/{id:path}", path_params={"id": "x\x00" + "y" * 9000}), LISTING)
    body = json.loads(adapter.error_response(caught.value).body)["error"]
    assert body["message"].startswith("The model `x\\x00yyy")
    assert body["message"].endswith("does not exist; the models are: big, vectors, small.")
    assert (body["code"], body["param"], len(body["message"]) < 400) == ("model_not_found", "model", True)


def test_at_most_twenty_models_are_named() -> None:
    from hostler.adapters.openai.models import model_not_found

    message = model_not_found("x", [f"m{number}" for number in range(50)]).message
    assert "m19, and 30 more" in message
    assert "m20" not in message


def test_the_operator_s_metadata_is_shown(adapter: OpenAIAdapter, decode_request: Any) -> None:
    card = ModelCard(name="m", aliases=("n",), metadata={"team": "blue", "tags": [1, {"a": None}]})
    entries = json.loads(adapter.model_info(decode_request("/v1/models"), ModelList(cards=(card,))).body)["data"]
    assert [entry["metadata"] for entry in entries] == [{"team": "blue", "tags": [1, {"a": None}]}] * 2
