"""Whether OpenAI's strict mode takes a JSON Schema. Schemas of other protocols' clients are often freer."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.json_body import NOT_JSON

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def is_strict(schema: msgspec.Raw) -> bool:
    """Whether every object in the schema requires all of its properties and has no others."""
    try:
        return _is_strict(_decode(schema))
    except NOT_JSON:
        return False


def _is_strict(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_strict, value))
    if not isinstance(value, dict):
        return True
    properties = value.get("properties")
    if value.get("type") == "object" or isinstance(properties, dict):
        names = properties if isinstance(properties, dict) else {}
        required = value.get("required")
        if value.get("additionalProperties") is not False or not isinstance(required, list):
            return False
        if not set(names) <= {name for name in required if isinstance(name, str)}:
            return False
    return all(map(_is_strict, value.values()))
