"""Lists of models in LM Studio's form, from the catalogue's snapshot. Context lengths are the real ones."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.models import model_not_found
from hostler.profiles.schema import ModelFacts

PUBLISHER = "hostler"

_NO_FACTS = ModelFacts()
_BITS = re.compile(r"[0-9]+")


def respond(body: object, *, status: int = 200) -> WireResponse:
    return WireResponse(status=status, body=msgspec.json.encode(body))


def find_card(listing: ModelList, name: str) -> ModelCard:
    """The card for a name or an alias. Raises `ModelNotFound`."""
    card = listing.resolve(name)
    if card is None:
        raise model_not_found(name, listing.names())
    return card


def list_models(listing: ModelList) -> WireResponse:
    """`GET /api/v1/models`: all listed models and aliases, each with a loaded instance.

    Every model is loaded on demand. Without an instance, clients would load it with a context length of their own.
    """
    return respond({"models": [_entry(name, card) for name, card in _named_cards(listing)]})


def loaded(card: ModelCard, name: str) -> WireResponse:
    """`POST /api/v1/models/load`: done already, with the model's own context length whatever the client asked for."""
    body = {
        "type": _type(card),
        "instance_id": name,
        "load_time_seconds": 0.0,
        "status": "loaded",
        "load_config": _context(card, "context_length"),
    }
    return respond(body)


def list_models_v0(listing: ModelList) -> WireResponse:
    """`GET /api/v0/models`."""
    return respond({"object": "list", "data": [_entry_v0(name, card) for name, card in _named_cards(listing)]})


def show_model_v0(listing: ModelList, name: str) -> WireResponse:
    """`GET /api/v0/models/{id}`. Raises `ModelNotFound`."""
    return respond(_entry_v0(name, find_card(listing, name)))


def _named_cards(listing: ModelList) -> list[tuple[str, ModelCard]]:
    return [(name, card) for card in listing.cards if card.listed for name in (card.name, *card.aliases)]


def _entry(name: str, card: ModelCard) -> dict[str, Any]:
    facts = card.facts or _NO_FACTS
    return {
        "type": _type(card),
        "publisher": PUBLISHER,
        "key": name,
        "display_name": name,
        "architecture": facts.architecture or "llama",
        "quantization": {"name": facts.quantization, "bits_per_weight": _bits(facts.quantization)},
        "size_bytes": card.size,
        "params_string": _size(facts.parameters),
        "loaded_instances": [{"id": name, "config": _context(card, "context_length")}],
        **_context(card, "max_context_length"),
        "format": "gguf",
        "capabilities": {"vision": "vision" in card.capabilities, "trained_for_tool_use": "tools" in card.capabilities},
        "description": card.description or None,
    }


def _entry_v0(name: str, card: ModelCard) -> dict[str, Any]:
    facts = card.facts or _NO_FACTS
    kind = _type(card)
    is_running = card.state in ("loaded", "sleeping")
    return {
        "id": name,
        "object": "model",
        "type": "embeddings" if kind == "embedding" else "vlm" if "vision" in card.capabilities else "llm",
        "publisher": PUBLISHER,
        "arch": facts.architecture or "llama",
        "compatibility_type": "gguf",
        "quantization": facts.quantization,
        "state": "loaded" if is_running else "not-loaded",
        **_context(card, "max_context_length"),
        **(_context(card, "loaded_context_length") if is_running else {}),
        "capabilities": ["tool_use"] if "tools" in card.capabilities else [],
    }


def _type(card: ModelCard) -> str:
    return "llm" if "completion" in card.capabilities else "embedding"


def _context(card: ModelCard, key: str) -> dict[str, int]:
    # Left out if unknown: clients would take a zero for the context length.
    return {key: card.context} if card.context else {}


def _bits(quantization: str) -> int | None:
    match = _BITS.search(quantization)
    return int(match[0]) if match is not None else None


def _size(parameters: int) -> str | None:
    """As in names of models: `135M`, `8B`."""
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.1f}".removesuffix(".0") + "B"
    return f"{parameters / 1e6:.0f}M" if parameters else None
