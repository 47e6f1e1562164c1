"""The list of models in OpenAI's form, from the catalogue's snapshot."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import ModelNotFound, printable
from hostler.adapters.model_list import ModelCard, ModelList

_MAX_NAMES = 20


_MEDIA = (("image", "vision"), ("audio", "audio"))


def list_models(listing: ModelList) -> WireResponse:
    """All listed models and aliases, by name: the active or default one first, those without chat last."""
    first = listing.active or listing.default
    named = [(name, card) for card in listing.cards if card.listed for name in (card.name, *card.aliases)]
    named.sort(key=lambda each: (each[0] != first, "completion" not in each[1].capabilities, each[0]))
    data = [_entry(name, card) for name, card in named]
    return WireResponse(body=msgspec.json.encode({"object": "list", "data": data}))


def show_model(listing: ModelList, name: str) -> WireResponse:
    """One model by a name or an alias. Raises `ModelNotFound`."""
    card = listing.resolve(name)
    if card is None:
        raise model_not_found(name, listing.names())
    return WireResponse(body=msgspec.json.encode(_entry(name, card)))


def model_not_found(name: str, names: list[str]) -> ModelNotFound:
    """The error for an unknown name, with the names that exist."""
    if names:
        known = "the models are: " + ", ".join(printable(known, 80) for known in names[:_MAX_NAMES])
        if len(names) > _MAX_NAMES:
            known += f", and {len(names) - _MAX_NAMES} more"
    else:
        known = "there are no models"
    return ModelNotFound(f"The model `{printable(name)}` does not exist; {known}.", param="model", model=name)


def _entry(name: str, card: ModelCard) -> dict[str, Any]:
    # Flat values and lists only, except for the two objects that llama-server's router has too, and what the operator adds: clients search these
    # entries for prices and fail on other objects. The real context is the only number that looks like a context length.
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "hostler",
    }
    if card.context > 0:
        entry["context_length"] = card.context
        entry["max_model_len"] = card.context
    media = [kind for kind, capability in _MEDIA if capability in card.capabilities]
    # Otherwise llama-server's clients send no images until the model is loaded.
    if media or (card.facts is not None and "completion" in card.capabilities):
        entry["architecture"] = {"input_modalities": ["text", *media], "output_modalities": ["text"]}
    if card.facts is not None:
        entry |= {"type": card.kind, "capabilities": card.capabilities}
        if card.facts.quantization not in ("", "unknown"):
            entry["quantization"] = card.facts.quantization
    if card.metadata:
        entry["metadata"] = card.metadata
    # As llama-server's router, whose clients read this list too: it has no state for a failed model.
    failed = card.state == "failed"
    entry["status"] = {"value": "unloaded", "failed": True} if failed else {"value": card.state}
    return entry
