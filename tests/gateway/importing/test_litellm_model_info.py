"""What LiteLLM's files say about models."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.importing.litellm_model_info import model_info


def test_prices_are_for_a_million_tokens_wherever_they_are() -> None:
    found = model_info({"input_cost_per_token": 0.000002}, {"cache_read_input_token_cost": 0.0000005})
    assert found.price == {"input": 2.0, "cached": 0.5}
    assert [key for _, key, _ in found.notes] == [
        "litellm_params.input_cost_per_token",
        "model_info.cache_read_input_token_cost",
    ]


@pytest.mark.parametrize(
    ("info", "description"),
    [
        ({"max_input_tokens": 4096}, {"context": 4096}),
        ({"mode": "embedding"}, {"capabilities": ["embedding"]}),
        ({"mode": "audio_speech"}, {"metadata": {"mode": "audio_speech"}}),
        ({"supports_vision": True}, {"capabilities": ["completion", "vision"]}),
        ({"supports_vision": False}, {"capabilities": ["completion"]}),
        ({"access_groups": ["beta"]}, None),
    ],
)
def test_facts_describe_the_model(info: dict[str, Any], description: dict[str, Any] | None) -> None:
    assert model_info({"model": "x"}, info).description == description


def test_a_base_model_beside_the_parameters_is_part_of_the_metadata() -> None:
    found = model_info({"model": "azure/x", "base_model": "azure/gpt-x"}, {})
    assert found.description == {"metadata": {"base_model": "azure/gpt-x"}}
    assert found.notes == (("taken", "litellm_params.base_model", "the metadata in describe"),)
