"""The list of models in Anthropic's form."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from anthropic.types import ModelInfo

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.errors import (
    BadRequest,
    ModelNotFound,
)
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.profiles.schema import ModelFacts

CARDS = (
    ModelCard(name="big", aliases=("claude-sonnet", "org/b"), context=8192, created=1738911764, state="loaded"),
    ModelCard(name="vectors", context=512, capabilities=("embedding",)),
    ModelCard(name="small"),
    ModelCard(name="hidden", listed=False),
)


LISTING = ModelList(cards=CARDS, index={name: card for card in CARDS for name in (card.name, *card.aliases)})


@pytest.fixture
def listed(adapter: AnthropicAdapter, decode_request: Any) -> Any:
    def response(query: str = "") -> Any:
        return json.loads(adapter.model_info(decode_request("/v1/models", query=query), LISTING).body)

    return response


def test_the_list_has_chat_models_under_every_name(listed: Any) -> None:
    found = listed()
    assert [entry["id"] for entry in found["data"]] == ["big", "claude-sonnet", "org/b", "small"]
    assert (found["has_more"], found["first_id"], found["last_id"]) == (False, "big", "small")
    assert found["data"][0] == {
        "type": "model",
        "id": "big",
        "display_name": "big",
        "created_at": "2025-02-07T07:02:44Z",
        "lifecycle": "active",
        "max_input_tokens": 8192,
        "max_tokens": 8192,
    }


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ("limit=2", ["big", "claude-sonnet"], True),
        ("limit=2&after_id=claude-sonnet", ["org/b", "small"], False),
        ("limit=1&before_id=org%2Fb", ["claude-sonnet"], True),
        ("beta=true&after_id=small", [], False),
    ],
)
def test_the_list_is_paged(listed: Any, query: str, ids: list[str], more: bool) -> None:
    found = listed(query)
    assert ([entry["id"] for entry in found["data"]], found["has_more"]) == (ids, more)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "limit=" + "9" * 5000, "after_id=nobody"])
def test_invalid_pages_are_rejected(listed: Any, query: str) -> None:
    with pytest.raises(BadRequest):
        listed(query)


def test_a_model_is_found_by_any_name(adapter: AnthropicAdapter, decode_request: Any) -> None:
    def find(name: str) -> Any:
        return json.loads(
            adapter.model_info(decode_request("/v1/models/{id:path}", path_params={"id": name}), LISTING).body
        )

    assert find("org/b")["id"] == "org/b"
    with pytest.raises(ModelNotFound, match="big, vectors, small"):
        find("nobody")


@pytest.mark.parametrize("capabilities", [("completion",), ("completion", "vision", "thinking")])
def test_a_model_has_every_field_that_the_sdk_declares(
    adapter: AnthropicAdapter, decode_request: Any, capabilities: tuple[str, ...]
) -> None:
    card = msgspec.structs.replace(CARDS[0], capabilities=capabilities, facts=ModelFacts(), thinking=("low", "high"))
    listing = ModelList(cards=(card,), index={"big": card})
    body = adapter.model_info(decode_request("/v1/models"), listing).body
    model = ModelInfo.model_validate(json.loads(body)["data"][0])
    assert model.capabilities is not None
    assert model.capabilities.thinking.types.enabled.supported is ("thinking" in capabilities)
    assert model.capabilities.image_input.supported is ("vision" in capabilities)
    assert not model.capabilities.server_tools.web_search.supported
