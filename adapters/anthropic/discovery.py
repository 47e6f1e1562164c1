"""Asks a server with Anthropic's protocol which models it has, page by page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from hostler.adapters.anthropic.operations import VERSION
from hostler.adapters.remote_models import (
    Discovery,
    ModelReport,
    Query,
    RemoteModel,
    distinct,
    document,
    entries,
    mapping,
    model_name,
    short_text,
    timestamp,
    unavailable,
    whole,
)

_PATH = "/v1/models"
_MAX_PAGES = 10
_CAPABILITIES = {"image_input": "vision", "thinking": "thinking", "audio_input": "audio"}


def discover() -> Discovery:
    """The models. Raises `ListUnavailable`."""
    models: list[RemoteModel | None] = []
    after = ""
    for _ in range(_MAX_PAGES):
        (answer,) = yield (Query(path=f"{_PATH}?limit=1000{after}", headers=(VERSION,)),)
        page = document(answer)
        listed = entries(page, "data", "models")
        if listed is None:
            raise unavailable(_PATH, answer)
        models += map(_read, listed)
        last = model_name(mapping(page).get("last_id"))
        if not (listed and last and mapping(page).get("has_more") is True):
            break
        after = f"&after_id={quote(last, safe='')}"
    return ModelReport(models=distinct(models))


def _read(entry: dict[str, Any]) -> RemoteModel | None:
    name = model_name(entry.get("id"))
    if not name:
        return None
    given = mapping(entry.get("capabilities"))
    more = (ours for theirs, ours in _CAPABILITIES.items() if mapping(given.get(theirs)).get("supported") is True)
    # Every model of this protocol has tools; servers that say nothing more may have anything.
    return RemoteModel(
        name=name,
        context=whole(entry.get("max_input_tokens"), entry.get("context_length"), entry.get("context_window")),
        capabilities=("completion", "tools", *more) if given else None,
        created=int(timestamp(entry.get("created_at")) or timestamp(entry.get("created"))),
        description=short_text(entry.get("display_name")),
    )
