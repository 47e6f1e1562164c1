"""The JSON Schema of settings for editors."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest

from hostler.gateway.settings import Settings
from hostler.profiles.json_schema import field_descriptions
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


def nodes(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections and keys of a schema, each with where it is."""
    for section, definition in document["$defs"].items():
        yield section, definition
        for key, node in definition["properties"].items():
            yield f"{section}.{key}", node
            for name, inner in node.get("properties", {}).items():
                yield f"{section}.{key}.{name}", inner


NODES = dict(nodes(schema(Settings)))


@pytest.mark.parametrize("node", NODES)
def test_every_section_and_key_of_a_file_has_a_description(node: str) -> None:
    text = NODES[node].get("description", "")
    assert len(text.split()) >= 4, "needs a docstring below it that says what the name does not"
    assert text.endswith("."), text
    assert not re.search(r"\]\(|\b(?:as|see) (?:above|below)\b", text), "editors show it alone, without links"


def test_descriptions_contain_the_unit() -> None:
    assert "In seconds." in NODES["QueueSettings.max_wait_s"]["description"]
    for key in ("GatewaySettings.max_body", "SupervisorSettings.memory_budget"):
        assert "In bytes, or with a unit, such as 9GiB" in NODES[key]["description"]


class Base(msgspec.Struct):
    inherited: int = 1
    """Of the base."""
    replaced: int = 1
    """Is not seen."""


class Described(Base):
    replaced: int = 2
    """Of the struct itself,
    in two lines."""
    bare: int = 3


def test_the_description_of_a_field_is_the_docstring_below_it() -> None:
    assert field_descriptions(Described) == {
        "inherited": "Of the base.",
        "replaced": "Of the struct itself, in two lines.",
    }


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Tagged(msgspec.Struct, frozen=True, kw_only=True, tag="tagged"):
    level: Level = Level.LOW
    pair: tuple[int, str] = (1, "a")
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
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
