"""Events of a stream that say nothing: keep-alives in the form of a chunk, as many servers send them."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.json_body import NOT_JSON

# What every event of an answer repeats, whatever it says.
_ENVELOPE = frozenset(
    {
        *("id", "object", "created", "created_at", "model", "system_fingerprint", "service_tier", "provider", "type"),
        *("index", "role", "sequence_number", "item_id", "output_index", "content_index", "obfuscation", "usage"),
    }
)


def says_nothing(data: bytes) -> bool:
    """Whether an event has nothing but its envelope and empty fields. Its usage is not looked at."""
    try:
        return _is_blank(msgspec.json.decode(data))
    except NOT_JSON:
        return False


def _is_blank(value: Any) -> bool:
    # In a loop: most streams begin with such an event, and a generator would take three times as many frames for it.
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in _ENVELOPE and each is not None and not _is_blank(each):
                return False
        return True
    if isinstance(value, list):
        return all(map(_is_blank, value))
    return value is None or value is False or value == ""
