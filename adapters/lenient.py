"""Decodes what servers send as typed values even if some of it is of another type than their protocol says.

Numbers come as text or as fractions, token counts as `10**400`, texts as numbers, lists and objects as null. Such a value
is converted where its meaning is clear, and left out otherwise: the rest of the event still counts. Of a vector nothing is
left out: the rest would be another vector.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import inspect

#: The largest number that every JSON reader keeps exactly.
MAX_COUNT = 2**53
#: A token count, an index, or a time as a whole number. Others are left out.
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
#: A time in milliseconds, or a price in US dollars: not negative, and small enough to be converted and added up.
Amount = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]

#: Numbers that are worth nothing unless all of them are kept, as those of a vector are.
Numbers = Annotated[list[float], msgspec.Meta(extra={"whole": True})]
#: Lists of numbers of which none is left out.
Vectors = Annotated[list[Numbers], msgspec.Meta(extra={"whole": True})]

_MAX_DIGITS = 40
#: Lists and objects in one JSON text, at most: a decoder takes seconds for millions of them, in which nothing else runs.
MAX_CONTAINERS = 1_000_000
#: Bytes that are converted, at most: that takes many times as long as decoding what fits.
_MAX_CONVERTED = 4 * 1024 * 1024
_UNFIT: Any = object()

_decode_exactly = msgspec.json.Decoder(float_hook=lambda digits: msgspec.Raw(digits.encode())).decode

T = TypeVar("T")


def _float(digits: str) -> float:
    return float(digits)


_decode_values = msgspec.json.Decoder(float_hook=_float).decode


def check_containers(data: bytes) -> None:
    """Raises `msgspec.DecodeError` for JSON of more than `MAX_CONTAINERS` lists and objects."""
    # Ten times as fast as counting them.
    if len(data) > MAX_CONTAINERS and len(data) - len(data.translate(None, b"[{")) > MAX_CONTAINERS:
        raise msgspec.DecodeError(f"more than {MAX_CONTAINERS} lists and objects")


def decode_exactly(data: bytes) -> Any:
    """JSON of any shape. Fractions keep their spelling: `-1e-07` is the same number as `-1e-7`, but not the same response.
    Raises one of `NOT_JSON`."""
    check_containers(data)
    return _decode_exactly(data)


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A function that decodes bytes as `kind`. It raises one of `NOT_JSON` for what is no JSON, of another shape, or larger
    than `check_containers` allows.

    What fits costs no more than with msgspec's own decoder.
    """
    decode_strictly = msgspec.json.Decoder(kind).decode

    def decode(data: bytes) -> T:
        if len(data) > MAX_CONTAINERS:
            check_containers(data)
        try:
            return decode_strictly(data)
        except msgspec.ValidationError:
            if len(data) > _MAX_CONVERTED:
                raise
            found: T = _convert(data, kind)
            if found is _UNFIT:
                raise
            return found

    return decode


def decode_any(data: bytes | str) -> Any:
    """JSON of any shape, with numbers of any size. Raises one of `NOT_JSON`."""
    if len(data) > MAX_CONTAINERS:
        check_containers(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    try:
        return _decode_values(data)
    except msgspec.ValidationError:  # an integer of thousands of digits
        try:
            value = json.loads(data, parse_int=_float)
            msgspec.json.encode(value)  # fails for half a character, which `json` accepts and nothing can send on
            return value
        except ValueError as error:
            raise msgspec.DecodeError(str(error)) from None


def _convert(data: bytes, kind: Any) -> Any:
    """The bytes as this type, with unsuitable values converted or left out; `_UNFIT` if the whole does not fit.

    Raises one of `NOT_JSON` for what is no JSON: the strict decoder finds odd values before the end of what is cut off.
    """
    value = decode_any(data)
    return _fit(value, inspect.type_info(kind))


def count(value: object) -> int | None:
    """A number of tokens or an index in any form; `None` if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, msgspec.Raw):
        value = bytes(value)[:_MAX_DIGITS].decode("ascii", "replace")
    if isinstance(value, str):
        try:
            value = float(value) if len(value) <= _MAX_DIGITS else None
        except ValueError:
            return None
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) else None
    return value if isinstance(value, int) and -MAX_COUNT <= value <= MAX_COUNT else None


def encode(value: Any) -> bytes:
    """The JSON of decoded JSON, also with whole numbers that are too large for msgspec."""
    try:
        return msgspec.json.encode(value)
    except OverflowError:
        return msgspec.json.encode(_with_digits(value))


def _with_digits(value: Any) -> Any:
    """The value with its large whole numbers as the digits that they had."""
    if isinstance(value, dict):
        return {name: _with_digits(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_digits(inner) for inner in value]
    is_large = isinstance(value, int) and not -(2**63) <= value < 2**64
    return msgspec.Raw(str(value).encode()) if is_large else value


def _fit(value: Any, kind: inspect.Type) -> Any:
    """The value as this type, or `_UNFIT`."""
    fit = _FITS.get(type(kind))
    return _UNFIT if fit is None else fit(value, kind)


def _fit_union(value: Any, kind: Any) -> Any:
    if value is None and any(isinstance(each, inspect.NoneType) for each in kind.types):
        return None
    # A value of the right type is kept; only then is it converted to another one.
    ordered = sorted(kind.types, key=lambda each: not isinstance(value, _NATURAL.get(type(each), ())))
    for each in ordered:
        if not isinstance(each, inspect.NoneType) and (found := _fit(value, each)) is not _UNFIT:
            return found
    return _UNFIT


def _fit_struct(value: Any, kind: Any) -> Any:
    if not isinstance(value, dict):
        return _UNFIT
    fields: dict[str, Any] = {}
    for field in kind.fields:
        found = _fit(value[field.encode_name], field.type) if field.encode_name in value else _UNFIT
        if found is not _UNFIT:
            fields[field.name] = found
        elif field.required:
            return _UNFIT
    return kind.cls(**fields)


def _fit_list(value: Any, kind: Any) -> Any:
    if not isinstance(value, list):
        return _UNFIT
    return [found for each in value if (found := _fit(each, kind.item_type)) is not _UNFIT]


def _fit_whole(value: Any, kind: Any) -> Any:
    """A list of which nothing may be left out."""
    found = _fit(value, kind.type)
    return found if isinstance(value, list) and found is not _UNFIT and len(found) == len(value) else _UNFIT


def _fit_int(value: Any, kind: Any) -> Any:
    found = count(value)
    return found if found is not None and _within(found, kind) else _UNFIT


def _fit_float(value: Any, kind: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)[:999]) > _MAX_DIGITS:
        return _UNFIT
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _UNFIT
    return number if math.isfinite(number) and _within(number, kind) else _UNFIT


def _within(number: float, kind: Any) -> bool:
    return (kind.ge is None or number >= kind.ge) and (kind.le is None or number <= kind.le)


def _fit_text(value: Any, kind: Any) -> Any:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) and _is_short(value) else _UNFIT


def _fit_flag(value: Any, kind: Any) -> Any:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False, "1": True, "0": False}.get(str(value)[:9].lower(), _UNFIT)


def _fit_raw(value: Any, kind: Any) -> Any:
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (OverflowError, ValueError, msgspec.MsgspecError):
        return _UNFIT


def _is_short(value: Any) -> bool:
    return isinstance(value, float) or -MAX_COUNT <= value <= MAX_COUNT


_NATURAL: dict[type, Any] = {
    inspect.StrType: str,
    inspect.IntType: int,
    inspect.FloatType: (int, float),
    inspect.BoolType: bool,
    inspect.ListType: list,
    inspect.StructType: dict,
    inspect.DictType: dict,
}
_FITS: dict[type, Callable[[Any, Any], Any]] = {
    inspect.UnionType: _fit_union,
    inspect.StructType: _fit_struct,
    inspect.ListType: _fit_list,
    inspect.Metadata: _fit_whole,
    inspect.IntType: _fit_int,
    inspect.FloatType: _fit_float,
    inspect.StrType: _fit_text,
    inspect.BoolType: _fit_flag,
    inspect.RawType: _fit_raw,
    inspect.AnyType: lambda value, kind: value,
    inspect.DictType: lambda value, kind: value if isinstance(value, dict) else _UNFIT,
}
