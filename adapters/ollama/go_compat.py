"""What Ollama's clients see of Go: lenient JSON decoding, its error messages, JSON encoding, durations and times."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import msgspec

from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import check_size, check_surrogates

_SPACE = " \t\r\n"


def _no_constant(name: str) -> NoReturn:
    if name.startswith("-"):
        raise BadRequest("invalid character 'I' in numeric literal")
    raise BadRequest(f"invalid character {name[0]!r} looking for beginning of value")


_decoder = json.JSONDecoder(parse_constant=_no_constant)


class Fields:
    """The members of one JSON object, decoded as Go does: names in any case, null as absent.

    `struct` is the name of Go's type, for error messages.
    """

    __slots__ = ("_members", "_path", "_struct")

    def __init__(self, members: Mapping[str, Any], struct: str, path: str = "") -> None:
        self._members = {name.lower(): value for name, value in members.items() if value is not None}
        self._struct = struct
        self._path = path

    def has(self, name: str) -> bool:
        """Whether the member is present and not null."""
        return name in self._members

    def any(self, name: str) -> Any:
        """The member of any type; `None` if absent."""
        return self._members.get(name)

    def all(self) -> dict[str, Any]:
        """All members that are not null, by their names in lower case."""
        return dict(self._members)

    def string(self, name: str) -> str:
        """A string; empty if absent."""
        value = self._members.get(name, "")
        return value if isinstance(value, str) else self._wrong(name, value, "string")

    def flag(self, name: str) -> bool | None:
        """A boolean; `None` if absent."""
        value = self._members.get(name)
        return value if value is None or isinstance(value, bool) else self._wrong(name, value, "bool")

    def integer(self, name: str) -> int:
        """An integer; 0 if absent."""
        value = self._members.get(name, 0)
        return value if isinstance(value, int) and not isinstance(value, bool) else self._wrong(name, value, "int")

    def array(self, name: str, kind: str) -> list[Any]:
        """A list; empty if absent. `kind` is Go's name for its type."""
        value = self._members.get(name, [])
        return value if isinstance(value, list) else self._wrong(name, value, kind)

    def mapping(self, name: str, kind: str = "map[string]interface {}") -> dict[str, Any]:
        """An object; empty if absent."""
        value = self._members.get(name, {})
        return value if isinstance(value, dict) else self._wrong(name, value, kind)

    def inner(self, name: str, struct: str) -> Fields:
        """The fields of an object."""
        return Fields(self.mapping(name, f"api.{struct}"), struct)

    def each(self, name: str, struct: str) -> list[Fields]:
        """The fields of each object in a list; null counts as an empty object."""
        found = []
        for value in self.array(name, f"[]api.{struct}"):
            if value is not None and not isinstance(value, dict):
                self._wrong(name, value, f"api.{struct}")
            found.append(Fields(value or {}, struct))
        return found

    def strings(self, name: str) -> list[str]:
        """A list of strings; empty if absent."""
        values = self.array(name, "[]string")
        for value in values:
            if not isinstance(value, str):
                self._wrong(name, value, "string")
        return values

    def _wrong(self, name: str, value: object, kind: str) -> NoReturn:
        raise BadRequest(
            f"json: cannot unmarshal {kind_of(value)} into Go struct field {self._struct}.{name} of type {kind}",
            param=name,
        )


def decode_fields(body: bytes, struct: str) -> Fields:
    """The fields of the first JSON value in the body. Raises `BadRequest` with Go's error messages."""
    if not body.strip():
        raise BadRequest("missing request body")
    check_size(body)
    check_surrogates(body)
    text = body.decode("utf-8", "replace").lstrip(_SPACE)
    try:
        value, _ = _decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        raise BadRequest(_syntax_error(error, text)) from None
    except (ValueError, RecursionError):
        raise BadRequest("json: a value is too large") from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise BadRequest(f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct}")
    return Fields(value, struct)


def kind_of(value: object) -> str:
    """Go's name for the kind of a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, float):
        return f"number {value:g}"
    if isinstance(value, int):
        return "number"
    return "array" if isinstance(value, list) else "object"


def encode_json(value: object) -> bytes:
    """JSON as Go encodes it: compact, with HTML characters escaped."""
    encoded = msgspec.json.encode(value)
    # Outside strings JSON has none of these characters.
    for plain, escaped in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        if plain in encoded:
            encoded = encoded.replace(plain, escaped)
    return encoded


def encode_line(value: object) -> bytes:
    """A line of a stream."""
    return encode_json(value) + b"\n"


def quote(text: str) -> str:
    """Text in double quotes, like Go's `%q`."""
    return json.dumps(text, ensure_ascii=False)


def _syntax_error(error: json.JSONDecodeError, text: str) -> str:
    at = error.pos
    while at < len(text) and text[at] in _SPACE:
        at += 1
    if at >= len(text) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    found = f"invalid character {text[at]!r}"
    if error.msg.startswith(("Expecting property name", "Illegal trailing comma")):
        if text[at] == ",":
            found = f"invalid character {text[at + 1 :].lstrip(_SPACE)[:1]!r}"
        return f"{found} looking for beginning of object key string"
    if error.msg.startswith("Expecting ':'"):
        return f"{found} after object key"
    if error.msg.startswith("Expecting ','"):
        return f"{found} after {'object key:value pair' if _in_object(text, at) else 'array element'}"
    if error.msg.startswith("Invalid control character"):
        return f"{found} in string literal"
    if error.msg.startswith("Invalid \\"):
        return f"invalid character {text[at + 1 : at + 2]!r} in string escape code"
    return f"{found} looking for beginning of value"


def _in_object(text: str, at: int) -> bool:
    """Whether the position is directly within an object: the innermost open bracket is a brace."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text[:at])
    depth = 0
    for character in reversed(bare):
        if character in "]}":
            depth += 1
        elif character in "[{":
            if not depth:
                return character == "{"
            depth -= 1
    return True


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"(\d*)(?:\.(\d*))?", re.ASCII)
_UNIT = re.compile(r"[^.0-9]*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TYPES: dict[type, str] = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}

#: Ollama's "never".
FOREVER = "2318-01-01T00:00:00Z"


def decode_keep_alive(value: object) -> float | None:
    """How long a model stays loaded after its last response, in seconds: `inf` if negative, `None` if not given."""
    if value is None:
        return None
    if isinstance(value, str):
        seconds = parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:  # of hundreds of digits
            seconds = float("inf")
    else:
        raise BadRequest(f"Unsupported type: '{_TYPES[type(value)]}'", param="keep_alive")
    return float("inf") if seconds < 0 else seconds


def parse_duration(text: str) -> float:
    """The seconds of a duration like `1h30m`. Raises `BadRequest` with Go's error messages."""
    rest = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if rest == "0":
        return 0.0
    if not rest:
        raise BadRequest(f"time: invalid duration {quote(text)}")
    seconds = 0.0
    while rest:
        number = _NUMBER.match(rest)
        if number is None or not (number[1] or number[2]):
            raise BadRequest(f"time: invalid duration {quote(text)}")
        rest = rest[number.end() :]
        unit = _UNIT.match(rest)
        name = unit[0] if unit else ""
        if not name:
            raise BadRequest(f"time: missing unit in duration {quote(text)}")
        if name not in _UNITS:
            raise BadRequest(f"time: unknown unit {quote(name)} in duration {quote(text)}")
        seconds += float(f"{number[1] or 0}.{number[2] or 0}") * _UNITS[name]
        rest = rest[len(name) :]
    return -seconds if text.startswith("-") else seconds


def format_time(seconds: float) -> str:
    """A time in RFC 3339, UTC, without trailing zeros."""
    try:
        moment = _EPOCH + timedelta(microseconds=round(seconds * 1e6))
    except (OverflowError, ValueError):
        return FOREVER
    text = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    fraction = f".{moment.microsecond:06}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def nanoseconds(seconds: float) -> int:
    """A duration in responses."""
    return max(0, round(seconds * 1e9))
