"""Which schemas OpenAI's strict mode takes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from hostler.adapters.openai.strict_schema import is_strict

FREE = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
CLOSED = {**FREE, "additionalProperties": False}
NESTED = {"anyOf": [CLOSED, {"type": "null"}]}


def schema(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


@pytest.mark.parametrize(
    "value",
    [
        CLOSED,
        {**CLOSED, "properties": {"a": NESTED}},
        {"type": "object", "additionalProperties": False, "required": []},
    ],
)
def test_objects_that_require_all_and_allow_nothing_else_are_strict(value: Any) -> None:
    assert is_strict(schema(value))


@pytest.mark.parametrize(
    "value",
    [
        FREE,
        {"type": "object"},
        {**CLOSED, "required": []},
        {**CLOSED, "required": None},
        {**CLOSED, "properties": {"a": FREE}},
        {**CLOSED, "$defs": {"x": FREE}},
        {**CLOSED, "properties": {"a": {"type": "array", "items": {"anyOf": [FREE]}}}},
        "json",
    ],
)
def test_freer_schemas_are_not(value: Any) -> None:
    assert not is_strict(schema(value))
