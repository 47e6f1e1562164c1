"""The JSON Schema of settings for editors."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from hostler.profiles.schema import ProfileEntry
from hostler.profiles.yaml_config import Size, schema
from hostler.supervisor.config import SupervisorSettings


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A nested section."""

    size: Size = Size(7)
    mode: Literal["a", "b"] = "a"


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    inner: Inner = Inner()
    more: dict[str, Inner] = {}
    count: int
    maybe: float | None = None


def test_describes_structs_with_defaults_and_sizes() -> None:
    document = schema(Outer)
    inner = document["$defs"]["Inner"]
    assert inner["description"] == "A nested section."
    assert inner["additionalProperties"] is False
    assert inner["properties"]["size"]["default"] == 7
    assert inner["properties"]["mode"]["enum"] == ["a", "b"]
    outer = document["$defs"]["Outer"]
    assert outer["required"] == ["count"]
    assert outer["properties"]["inner"] == {"$ref": "#/$defs/Inner", "default": {"size": 7, "mode": "a"}}
    assert [kind.get("type") for kind in outer["properties"]["maybe"]["anyOf"]] == ["number", "string", "null"]


@pytest.mark.parametrize("settings", [SupervisorSettings, ProfileEntry])
def test_describes_every_key_of_the_real_settings(settings: type[msgspec.Struct]) -> None:
    document = schema(settings)
    properties = document["$defs"][settings.__name__]["properties"]
    assert set(properties) == set(settings.__struct_fields__)
    assert msgspec.json.encode(document)


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Tagged(msgspec.Struct, frozen=True, kw_only=True, tag="tagged"):
    level: Level = Level.LOW
    pair: tuple[int, str] = (1, "a")
    count: Annotated[int, msgspec.Meta(ge=1, description="how many")] = 1
    name: Annotated[str, msgspec.Meta(pattern="^x")] = "x"
    anything: Any = None
    names: list[str] = []


def test_describes_every_kind_of_type() -> None:
    tagged = schema(Tagged)["$defs"]["Tagged"]
    assert tagged["required"] == ["type"]
    properties = tagged["properties"]
    assert properties["type"] == {"enum": ["tagged"]}
    assert properties["level"] == {"enum": ["low", "high"], "default": "low"}
    assert properties["pair"]["minItems"] == 2
    assert properties["count"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert properties["name"]["pattern"] == "^x"
    assert properties["anything"] == {"default": None}
    assert properties["names"] == {"type": "array", "items": {"type": "string"}, "default": []}


def test_types_without_a_schema_are_an_error() -> None:
    with pytest.raises(TypeError, match="no schema for"):
        schema(complex)
