"""The list of models in Anthropic's form, from the catalogue's snapshot."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import BadRequest, ModelNotFound, printable
from hostler.adapters.model_list import ModelCard, ModelList

_MAX_PAGE = 1000
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_MAX_NAMES = 20


def list_models(listing: ModelList, query: str) -> WireResponse:
    """The models that can chat, with their aliases, in the catalogue's order: all, or the requested page."""
    entries = [
        _entry(name, card)
        for card in listing.cards
        if card.listed and "completion" in card.capabilities
        for name in (card.name, *card.aliases)
    ]
    page, more = _page(entries, _parse_query(query))
    body = {
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
    return WireResponse(body=msgspec.json.encode(body))


def show_model(listing: ModelList, name: str) -> WireResponse:
    """One model by a name or an alias. Raises `ModelNotFound`."""
    card = listing.resolve(name)
    if card is None:
        names = listing.names()
        known = (
            f"the models are: {', '.join(printable(known, 80) for known in names[:_MAX_NAMES])}"
            if names
            else "there are none"
        )
        raise ModelNotFound(f"model: {printable(name)} does not exist; {known}", param="model", model=name)
    return WireResponse(body=msgspec.json.encode(_entry(name, card)))


def _page(entries: list[dict[str, Any]], query: dict[str, str]) -> tuple[list[dict[str, Any]], bool]:
    limit = query.get("limit", str(_MAX_PAGE))
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= _MAX_PAGE:
        raise BadRequest(f"limit: must be a number from 1 to {_MAX_PAGE}", param="limit")
    count = int(limit)
    positions = {entry["id"]: position for position, entry in enumerate(entries)}
    after, before = query.get("after_id"), query.get("before_id")
    for name, given in (("after_id", after), ("before_id", before)):
        if given is not None and given not in positions:
            raise BadRequest(f"{name}: there is no model {printable(given)} in the list", param=name)
    if before is not None:
        end = positions[before]
        start = max(end - count, 0)
        return entries[start:end], start > 0
    start = 0 if after is None else positions[after] + 1
    return entries[start : start + count], start + count < len(entries)


def _parse_query(query: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in query.split("&"))
    return {_unquote(name): _unquote(value) for name, _, value in pairs if value}


def _unquote(text: str) -> str:
    escaped = text.replace("+", " ").encode()
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), escaped).decode("utf-8", "replace")


def _entry(name: str, card: ModelCard) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
    }
    if card.context > 0:
        entry |= {"max_input_tokens": card.context, "max_tokens": card.context}
    if card.facts is not None:
        entry["capabilities"] = _capabilities(card)
    return entry


def _capabilities(card: ModelCard) -> dict[str, Any]:
    """Every capability that Anthropic's list has, as far as it says something about other models."""

    def support(supported: bool, **more: Any) -> dict[str, Any]:
        return {"supported": supported, **more}

    thinks = "thinking" in card.capabilities
    levels = {level: support(level in card.thinking) for level in ("low", "medium", "high", "xhigh", "max")}
    unsupported = support(False)
    return {
        **dict.fromkeys(("batch", "citations", "code_execution", "context_management", "pdf_input"), unsupported),
        "effort": support(any(each["supported"] for each in levels.values()), **levels),
        "image_input": support("vision" in card.capabilities),
        "server_tools": support(False, code_execution=unsupported, web_search=unsupported),
        "structured_outputs": support(True),
        "thinking": support(
            thinks,
            types={
                "adaptive": unsupported,
                "between_tools": unsupported,
                "disabled": support(True),
                "enabled": support(thinks),
            },
        ),
    }
