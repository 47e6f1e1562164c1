"""The lists of models as OpenAI clients read them, from the catalogue's snapshot."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import ModelNotFound
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.errors import shown

_NAMED = 20


def models(listing: ModelList) -> WireResponse:
    """All listed models by name, aliases as entries of their own: the active or default one first, those that cannot chat last."""
    first = listing.active or listing.default
    named = [(name, card) for card in listing.cards if card.listed for name in (card.name, *card.aliases)]
    named.sort(key=lambda each: (each[0] != first, "completion" not in each[1].capabilities, each[0]))
    data = [_entry(name, card) for name, card in named]
    return WireResponse(body=msgspec.json.encode({"object": "list", "data": data}))


def model(listing: ModelList, name: str) -> WireResponse:
    """One model by a name or an alias. Raises `ModelNotFound`."""
    card = listing.resolve(name)
    if card is None:
        raise unknown(name, listing.names())
    return WireResponse(body=msgspec.json.encode(_entry(name, card)))


def unknown(name: str, names: list[str]) -> ModelNotFound:
    """The error for a name that nobody has, with those that exist."""
    if not names:
        return ModelNotFound(
            f"The model `{shown(name)}` does not exist; there are no models.", param="model", model=name
        )
    known = ", ".join(shown(known, 80) for known in names[:_NAMED])
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ModelNotFound(
        f"The model `{shown(name)}` does not exist; the models are: {known}{more}.", param="model", model=name
    )


def _entry(name: str, card: ModelCard) -> dict[str, Any]:
    # Only flat values beside the two objects that llama-server's router shows, too: clients search these entries for
    # prices and stumble over lists. No number here but the context that really runs may look like a context to them.
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "hostler",
    }
    if card.context > 0:
        entry["context_length"] = card.context
        entry["max_model_len"] = card.context
    senses = [kind for kind, word in (("image", "vision"), ("audio", "audio")) if word in card.capabilities]
    if senses:  # else clients of llama-server's keep pictures from a model until it is loaded
        entry["architecture"] = {"input_modalities": ["text", *senses], "output_modalities": ["text"]}
    # In the words of llama-server's router, whose clients read this list too: it has no state for a failed model.
    failed = card.state == "failed"
    entry["status"] = {"value": "unloaded", "failed": True} if failed else {"value": card.state}
    return entry
