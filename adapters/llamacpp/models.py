"""llama-server's information about itself and its models, from the catalogue's snapshot."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import WireResponse
from hostler.adapters.llamacpp.errors import error_answer, respond
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.models import model_not_found
from hostler.profiles.schema import ModelFacts

_NO_FACTS = ModelFacts()

# What llama-server supports and the gateway does not: status, message, and the type where it has one of its own.
_UNSUPPORTED: dict[str, tuple[int, str, str | None]] = {
    "download": (501, "Models cannot be downloaded or deleted here: they are the profiles in the configuration.", None),
    "set_props": (501, "Properties cannot be changed here: they are set in the model's profile.", None),
    "slot": (501, "Slots cannot be saved, restored or erased here: the gateway does it when it switches models.", None),
    "tools": (403, "this feature is disabled", "feature_disabled"),
    "proxy": (403, "this feature is disabled", "feature_disabled"),
}


def model_info(kind: str, model: str | None, listing: ModelList) -> WireResponse:
    """The response to a request for information. Raises `ModelNotFound`."""
    if kind == "health":
        return respond({"status": "ok"})
    if kind == "version":
        return respond({"version": listing.version})
    if kind == "props":
        return respond(_props(_card(listing, model), named=model is not None, version=listing.version))
    if kind == "slots":
        return respond(_slots(_card(listing, model)))
    if kind == "watch":
        return WireResponse(media_type=sse.MEDIA_TYPE, body=change_events(None, listing))
    return error_answer(*_UNSUPPORTED[kind])


def change_events(before: ModelList | None, now: ModelList) -> bytes:
    """The events of a router's `GET /models/sse`: first the state of every model, then each change.

    Aliases have events of their own: clients look for the names in their list.
    """
    if before is None:
        return b"".join(_event(name, "model_status", _status(card)) for name, card in _by_name(now).items())
    old, new = _by_name(before), _by_name(now)
    events = [_event(name, "model_remove", None) for name in old if name not in new]
    if new.keys() - old.keys():
        events.append(_event("*", "models_reload", None))
    for name, card in new.items():
        status = _status(card)
        if name in old and status != _status(old[name]):
            if card.state == "failed":
                status["exit_code"] = 1  # distinguishes it from a model that was stopped
            events.append(_event(name, "status_change", status))
    return b"".join(events)


def _by_name(listing: ModelList) -> dict[str, ModelCard]:
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
    """The named model; without a name the active one, else the default, else the first."""
    if name is not None:
        card = listing.resolve(name)
        if card is None:
            raise model_not_found(name, listing.names())
        return card
    chosen = listing.active or listing.default
    card = listing.find(chosen) if chosen is not None else None
    return card or next((card for card in listing.cards if card.listed), None)


def _props(card: ModelCard | None, *, named: bool, version: str) -> dict[str, Any]:
    # Clients fill any context length that they find, so there is only the real one.
    card = card or ModelCard(name="llama-server")
    facts = card.facts or _NO_FACTS
    capabilities = card.capabilities
    # Without a model, the gateway is a router: clients then show all models and load them on demand.
    router: dict[str, Any] = {} if named else {"role": "router", "models_autoload": True}
    return router | {
        "default_generation_settings": {"params": {}, "n_ctx": card.context},
        "total_slots": card.parallel,
        "model_alias": card.name,
        "model_ftype": facts.quantization,
        "model_path": card.name,
        "modalities": {"vision": "vision" in capabilities, "video": False, "audio": "audio" in capabilities},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": False,
        "ui": True,
        "ui_settings": {},
        "chat_template": facts.chat_template,
        "chat_template_caps": {
            "supports_tools": "tools" in capabilities,
            "supports_tool_calls": "tools" in capabilities,
        },
        "bos_token": "",
        "eos_token": "",
        "build_info": f"hostler {version}",
        "is_sleeping": card.state == "sleeping",
        "cors_proxy_enabled": False,
    }


def _slots(card: ModelCard | None) -> list[dict[str, Any]]:
    # What an engine is doing is not known here; a request gets a slot or waits for one.
    if card is None:
        return []
    idle = {"n_ctx": card.context, "speculative": False, "is_processing": False}
    return [{"id": number, **idle} for number in range(card.parallel)]
