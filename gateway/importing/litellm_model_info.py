"""What LiteLLM's files say about models: prices, context, capabilities, and facts for lists of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.importing.report import NoteKind
from hostler.gateway.importing.yaml_source import is_number

_COSTS: Final[Mapping[str, str]] = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
}
_MODES: Final[Mapping[str, str]] = {
    "embedding": "embedding",
    "rerank": "rerank",
    "chat": "completion",
    "completion": "completion",
    "responses": "completion",
    "image_generation": "image",
}
_CAPABILITIES: Final[Mapping[str, str]] = {
    "supports_vision": "vision",
    "supports_function_calling": "tools",
    "supports_reasoning": "thinking",
    "supports_audio_input": "audio",
}
#: Facts that do more than describe a model, and what to do instead.
_IN_EFFECT: Final[Mapping[str, str]] = {
    "access_groups": "the models that a key may use are those of `hostler keys add --model`",
    "team_id": "there are no teams: limits and models are those of keys",
    "supported_environments": "use a configuration file for each environment",
    "custom_tokenizer": "tokens are counted by the server that runs the model",
    "health_check_timeout": "gateway.probing holds for all backends",
    "health_check_model": "backends are asked for their models, not for answers",
    "disable_background_health_check": "backends are always checked in the background",
}


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The price and the description of a model, if there are any, with notes about the keys of the deployment."""

    price: Mapping[str, float] | None
    description: Mapping[str, Any] | None
    notes: tuple[tuple[NoteKind, str, str], ...]


def model_info(parameters: Mapping[str, Any], info: Mapping[str, Any]) -> ModelInfo:
    """What `model_info` says about a model, and `litellm_params` about its price."""
    price: dict[str, float] = {}
    description: dict[str, Any] = {}
    notes: list[tuple[NoteKind, str, str]] = []
    for key, value in {**parameters, **info}.items():
        where = f"{'model_info' if key in info else 'litellm_params'}.{key}"
        if key in _COSTS and is_number(value):
            price[_COSTS[key]] = round(value * 1_000_000, 6)
            notes.append(("taken", where, "prices, for a million tokens"))
        elif key in info or key == "base_model":
            kind, text = _describe(description, key, value)
            notes.append((kind, where, text))
    return ModelInfo(price=price or None, description=description or None, notes=tuple(notes))


def _describe(description: dict[str, Any], key: str, value: Any) -> tuple[NoteKind, str]:
    if key == "max_input_tokens" and isinstance(value, int) and is_number(value, 1):
        description["context"] = value
        return "taken", "the context in describe"
    if key == "mode" and (capability := _MODES.get(str(value))):
        description.setdefault("capabilities", []).append(capability)
        return "taken", "the capabilities in describe"
    if key in _CAPABILITIES and isinstance(value, bool):
        capabilities = description.setdefault("capabilities", ["completion"])
        if value:
            capabilities.append(_CAPABILITIES[key])
        return "taken", "the capabilities in describe"
    if key in _IN_EFFECT:
        return "missing", _IN_EFFECT[key]
    description.setdefault("metadata", {})[key] = value
    return "taken", "the metadata in describe"
