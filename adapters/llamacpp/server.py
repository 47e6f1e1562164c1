"""What llama-server tells of itself and its models, answered from the catalogue's snapshot."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from hostler.adapters.errors import BadRequest
from hostler.adapters.listing import Listing, ModelCard
from hostler.adapters.llamacpp.refusal import refused, respond
from hostler.adapters.openai.models import unknown
from hostler.adapters.protocol import WireResponse
from hostler.profiles.schema import ModelFacts

_MAX_PARAMETERS = 64
_NO_FACTS = ModelFacts()

# What llama-server knows and this gateway does not do: status, words, and the type where it is an own one.
_REFUSED: dict[str, tuple[int, str, str | None]] = {
    "watch": (501, "Model events are not sent here: ask GET /models, or follow GET /events.", None),
    "fetch": (501, "Models are neither downloaded nor deleted here: they are the profiles in the configuration.", None),
    "set_props": (501, "Properties cannot be changed here: they stand in the model's profile.", None),
    "slot": (501, "Slots are not saved, restored or erased here: the gateway does so itself when it switches.", None),
    "stream": (501, "Streams cannot be resumed here: an answer ends when its client leaves.", None),
    "tools": (403, "this feature is disabled", "feature_disabled"),
    "proxy": (403, "this feature is disabled", "feature_disabled"),
}


def parameter(query: str, name: str) -> str | None:
    """A parameter of the query; `None` if it is absent or empty. Raises `BadRequest` if it comes twice."""
    try:
        values = parse_qs(query, max_num_fields=_MAX_PARAMETERS).get(name, [])
    except ValueError:
        raise BadRequest(f"The query has more than {_MAX_PARAMETERS} parameters.") from None
    if len(values) > 1:
        raise BadRequest(f"The query has `{name}` more than once.", param=name)
    return values[0] if values else None


def answer(kind: str, model: str | None, listing: Listing) -> WireResponse:
    """The answer to a probe. Raises `ModelNotFound`."""
    if kind == "health":
        return respond({"status": "ok"})
    if kind == "version":
        return respond({"version": listing.version})
    if kind == "props":
        return respond(_props(_card(listing, model), named=model is not None, version=listing.version))
    if kind == "slots":
        return respond(_slots(_card(listing, model)))
    if kind == "lookup":
        return respond([])  # no stream outlives its client here
    return refused(*_REFUSED[kind])


def _card(listing: Listing, name: str | None) -> ModelCard | None:
    """The model that is named; if none is, the active one, else the default, else the first."""
    if name is not None:
        card = listing.find_folded(name)
        if card is None:
            raise unknown(name, listing.names())
        return card
    chosen = listing.active or listing.default
    card = listing.find(chosen) if chosen is not None else None
    return card or next((card for card in listing.cards if card.listed), None)


def _props(card: ModelCard | None, *, named: bool, version: str) -> dict[str, Any]:
    # The context that really runs is the only one told: clients fill to the brim whatever they find.
    card = card or ModelCard(name="llama-server")
    facts = card.facts or _NO_FACTS
    able = card.capabilities
    # Asked without a model, this is a router: clients then offer the whole list, and load models on demand.
    router: dict[str, Any] = {} if named else {"role": "router", "models_autoload": True}
    return router | {
        "default_generation_settings": {"params": {}, "n_ctx": card.context},
        "total_slots": card.parallel,
        "model_alias": card.name,
        "model_ftype": facts.quantization,
        "model_path": card.name,
        "modalities": {"vision": "vision" in able, "video": False, "audio": "audio" in able},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": False,
        "ui": False,
        "ui_settings": {},
        "chat_template": facts.chat_template,
        "chat_template_caps": {"supports_tools": "tools" in able, "supports_tool_calls": "tools" in able},
        "bos_token": "",
        "eos_token": "",
        "build_info": f"hostler {version}",
        "is_sleeping": card.state == "sleeping",
        "cors_proxy_enabled": False,
    }


def _slots(card: ModelCard | None) -> list[dict[str, Any]]:
    # What an engine does right now is not known here; a request finds a slot in any case, or waits for one.
    if card is None:
        return []
    fresh = {"n_ctx": card.context, "speculative": False, "is_processing": False}
    return [{"id": number, **fresh} for number in range(card.parallel)]
