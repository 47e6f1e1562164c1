"""What llama-server tells of itself and its models, answered from the catalogue's snapshot."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import WireResponse
from hostler.adapters.llamacpp.errors import refused, respond
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.models import model_not_found
from hostler.profiles.schema import ModelFacts

_NO_FACTS = ModelFacts()

# What llama-server knows and this gateway does not do: status, words, and the type where it is an own one.
_REFUSED: dict[str, tuple[int, str, str | None]] = {
    "fetch": (501, "Models are neither downloaded nor deleted here: they are the profiles in the configuration.", None),
    "set_props": (501, "Properties cannot be changed here: they stand in the model's profile.", None),
    "slot": (501, "Slots are not saved, restored or erased here: the gateway does so itself when it switches.", None),
    "stream": (404, "Stream not found or expired", None),
    "tools": (403, "this feature is disabled", "feature_disabled"),
    "proxy": (403, "this feature is disabled", "feature_disabled"),
}


def answer(kind: str, model: str | None, listing: ModelList) -> WireResponse:
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
    if kind == "drop":
        return WireResponse(status=204)
    if kind == "watch":
        return WireResponse(media_type=sse.MEDIA_TYPE, body=news(None, listing))
    return refused(*_REFUSED[kind])


def news(before: ModelList | None, now: ModelList) -> bytes:
    """What a router tells on `GET /models/sse`: how the models are, at first; then each change of it.

    A name of its own each, aliases too: clients look for the names of their list.
    """
    if before is None:
        return b"".join(_event(name, "model_status", _status(card)) for name, card in _named(now).items())
    known, there = _named(before), _named(now)
    told = [_event(name, "model_remove", None) for name in known if name not in there]
    if there.keys() - known.keys():
        told.append(_event("*", "models_reload", None))
    for name, card in there.items():
        status = _status(card)
        if name in known and status != _status(known[name]):
            if card.state == "failed":
                status["exit_code"] = 1  # that is how a router tells it from a model that was stopped
            told.append(_event(name, "status_change", status))
    return b"".join(told)


def _named(listing: ModelList) -> dict[str, ModelCard]:
    return {name: card for card in listing.cards if card.listed for name in (card.name, *card.aliases)}


def _event(model: str, event: str, data: dict[str, Any] | None) -> bytes:
    return sse.event(msgspec.json.encode({"model": model, "event": event, "data": data}))


def _status(card: ModelCard) -> dict[str, Any]:
    status: dict[str, Any] = {"status": "unloaded" if card.state == "failed" else card.state}
    if card.state == "loading" and card.percent is not None:
        stage = "text_model"
        status["progress"] = {"stages": [stage], "current": stage, "value": round(card.percent / 100, 3)}
    return status


def _card(listing: ModelList, name: str | None) -> ModelCard | None:
    """The model that is named; if none is, the active one, else the default, else the first."""
    if name is not None:
        card = listing.resolve(name)
        if card is None:
            raise model_not_found(name, listing.names())
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
        "ui": True,
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
