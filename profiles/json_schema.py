"""Generates the JSON Schema of settings types, which editors use for completion.

msgspec's own generator rejects defaults of custom types such as `Size`, and `${env:NAME}` in place of a number. The
description of a key is the docstring below it in its struct, which `docs/configuration.md` repeats.
"""

from __future__ import annotations

import ast
import inspect as python_inspect
import itertools
import math
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from hostler.profiles.yaml_config import Size

_VARIABLE = {"type": "string", "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}"}
_SIZE = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]([iI]?[bB])?|[bB])?\s*$"},
        _VARIABLE,
    ],
}
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema(shape: Any) -> dict[str, Any]:
    """The schema of `shape`, each struct once under `$defs`. Raises `TypeError` for types that YAML has no values of."""
    definitions: dict[str, Any] = {}
    root = _schema(inspect.type_info(shape), definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def _schema(info: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    match info:
        case inspect.Metadata():
            return _schema(info.type, definitions) | (info.extra_json_schema or {})
        case inspect.AnyType():
            return {}
        case inspect.NoneType():
            return {"type": "null"}
        case inspect.BoolType():
            return {"anyOf": [{"type": "boolean"}, _VARIABLE]}
        case inspect.IntType() | inspect.FloatType():
            kind = "integer" if isinstance(info, inspect.IntType) else "number"
            limits = {name: limit for key, name in _LIMITS.items() if (limit := getattr(info, key)) is not None}
            return {"anyOf": [{"type": kind, **limits}, _VARIABLE]}
        case inspect.StrType():
            return {"type": "string"} | ({"pattern": info.pattern} if info.pattern else {})
        case inspect.LiteralType():
            return {"enum": sorted(info.values, key=str)}
        case inspect.EnumType():
            return {"enum": [member.value for member in info.cls]}
        case inspect.UnionType():
            return {"anyOf": _flattened([_schema(member, definitions) for member in info.types])}
        case inspect.DictType():
            return {"type": "object", "additionalProperties": _schema(info.value_type, definitions)}
        case inspect.TupleType():
            items = [_schema(item, definitions) for item in info.item_types]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        case inspect.CollectionType():
            return {"type": "array", "items": _schema(info.item_type, definitions)}
        case inspect.StructType():
            return _struct(info, definitions)
        case inspect.CustomType() if info.cls is Size:
            return _SIZE
    raise TypeError(f"no schema for {info!r}")


def _flattened(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The alternatives, each once and without nested unions, which editors show badly."""
    flat: list[dict[str, Any]] = []
    for member in members:
        for inner in member["anyOf"] if member.keys() == {"anyOf"} else [member]:
            if inner not in flat:
                flat.append(inner)
    return sorted(flat, key=lambda alternative: alternative in ({"type": "null"}, _VARIABLE))


def _struct(info: inspect.StructType, definitions: dict[str, Any]) -> dict[str, Any]:
    reference = {"$ref": f"#/$defs/{info.cls.__name__}"}
    if info.cls.__name__ in definitions:
        return reference
    schema = definitions[info.cls.__name__] = {"title": info.cls.__name__, "type": "object"}
    if description := _description(info.cls):
        schema["description"] = description
    schema["properties"] = properties = {}
    if info.tag_field is not None:
        properties[info.tag_field] = {"enum": [info.tag]}
    descriptions = field_descriptions(info.cls)
    for field in info.fields:
        property_ = _schema(field.type, definitions) | _default(field)
        if field.name in descriptions:
            property_["description"] = " ".join((descriptions[field.name], *_unit(field)))
        properties[field.encode_name] = property_
    schema["required"] = [field.encode_name for field in info.fields if field.required]
    if info.tag_field is not None:
        schema["required"].append(info.tag_field)
    if info.forbid_unknown_fields:
        schema["additionalProperties"] = False
    return reference


def _description(cls: Any) -> str:
    # Structs without a docstring inherit msgspec's own.
    return python_inspect.cleandoc(cls.__doc__) if cls.__doc__ and cls.__doc__ != msgspec.Struct.__doc__ else ""


def field_descriptions(cls: Any) -> dict[str, str]:
    """The docstring below each field of a struct and its bases, by the field's name, as one line."""
    found: dict[str, str] = {}
    for each in cls.__mro__:
        if issubclass(each, msgspec.Struct) and each is not msgspec.Struct:
            (definition,) = ast.parse(textwrap.dedent(python_inspect.getsource(each))).body
            assert isinstance(definition, ast.ClassDef)
            found = {**dict(_attribute_docstrings(definition)), **found}
    return found


def _attribute_docstrings(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, following in itertools.pairwise(definition.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


def _unit(field: inspect.Field) -> Iterator[str]:
    """What `docs/configuration.md` has in the column "unit", where name or type say it."""
    if field.encode_name.endswith("_s"):
        yield "In seconds."
    elif any(isinstance(each, inspect.CustomType) and each.cls is Size for each in _alternatives(field.type)):
        yield "In bytes, or with a unit, such as 9GiB or 512MB."


def _alternatives(info: Any) -> Iterator[Any]:
    match info:
        case inspect.Metadata():
            yield from _alternatives(info.type)
        case inspect.UnionType():
            for each in info.types:
                yield from _alternatives(each)
        case _:
            yield info


def _default(field: inspect.Field) -> dict[str, Any]:
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if default is msgspec.NODEFAULT or default is msgspec.UNSET:
        return {}
    plain = msgspec.to_builtins(default, enc_hook=lambda value: int(value) if isinstance(value, Size) else None)
    return {} if isinstance(plain, float) and not math.isfinite(plain) else {"default": plain}
