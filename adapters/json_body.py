"""A JSON request body as bytes: validated, read at the top level and patched, never decoded as a whole.

`JsonBody` validates a body and gives access to its members; `patch` changes a few top-level members and leaves every
other byte as it came.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from itertools import accumulate
from typing import TypeVar

import msgspec

from hostler.adapters.errors import BadRequest

#: What decoding raises for bytes that are not JSON or not of the expected type: besides msgspec's own errors Python's,
#: for text that is not UTF-8 and for nesting that is too deep.
NOT_JSON = (msgspec.DecodeError, UnicodeError, RecursionError)

MAX_DEPTH = 128
MAX_KEYS = 100_000
MAX_BRACKETS = 100_000
MAX_VALUES = 2_000_000

# A smaller body cannot have so many keys that reading them takes long.
_SMALL = 64 * 1024

# Lists of up to this many entries are checked entry by entry.
_FEW = 50_000
_BLOCK = 256 * 1024

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_entries = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str | None)
_flag = msgspec.json.Decoder(bool | None)
_number = msgspec.json.Decoder(int | None)
#: An escape: a whole pair of surrogates, half of one (the group), or anything else.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_RAW_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")
_KEY = re.compile(rb'[ \t\n\r]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_NEXT = re.compile(rb"[ \t\n\r]*([,}])")
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_NO_COMMAS = bytes(byte for byte in range(256) if byte not in b'",')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")

T = TypeVar("T")


class JsonBody:
    """The top-level members of a JSON object, by name, as undecoded bytes.

    Raises `BadRequest` for anything that is not one well-formed JSON object, for what parsers disagree about (duplicate
    names, bytes that are not UTF-8, lone surrogates), and beyond `MAX_DEPTH` levels, `MAX_KEYS` names, `MAX_VALUES` values
    or `MAX_BRACKETS` lists and objects in a member.
    """

    __slots__ = ("body", "members")

    def __init__(self, body: bytes) -> None:
        self.body = body
        _check_keys(body)
        try:
            if not body.isascii():
                str(body, "utf-8")
            self.members = _decode_members(body)
        except UnicodeDecodeError as error:
            check_surrogates(body)
            raise BadRequest(f"The request body is not UTF-8 (byte {error.start}).") from None
        except RecursionError:
            raise _too_deep() from None
        except msgspec.ValidationError:
            raise BadRequest("The request body must be a JSON object.") from None
        except msgspec.DecodeError as error:
            check_surrogates(body)
            raise BadRequest(_malformed(body, error)) from None
        colons = body.count(b":")
        # Colons only between names and values, and a single object: no duplicate names, and only lists can be nested.
        is_flat = colons == len(self.members) and body.count(b"[") < MAX_DEPTH and body.count(b"{") == 1
        if not is_flat and _check_depth(self.members) != colons:
            spans(body, self.members)
        _check_values(body)

    def text(self, name: str) -> str | None:
        """The member as a string; `None` if it is absent or null. Raises `BadRequest` if it is anything else."""
        return self.get(name, _text, expected="a string")

    def flag(self, name: str) -> bool:
        """The member as true or false; false if it is absent or null."""
        return self.get(name, _flag, expected="true or false") or False

    def number(self, name: str) -> int | None:
        """The member as an integer; `None` if it is absent or null."""
        return self.get(name, _number, expected="an integer")

    def get(self, name: str, decoder: msgspec.json.Decoder[T | None], *, expected: str) -> T | None:
        """The member, decoded; `None` if it is absent or null. `expected` describes its type in errors."""
        raw = self.members.get(name)
        if raw is None:
            return None
        try:
            return decoder.decode(raw)
        except msgspec.ValidationError:
            raise BadRequest(f"`{name}` must be {expected}.", param=name) from None

    def has(self, name: str) -> bool:
        """Whether the member is present and not null."""
        raw = self.members.get(name)
        return raw is not None and bytes(raw) != b"null"


def members(body: bytes, known: JsonBody | None = None) -> dict[str, msgspec.Raw]:
    """The top-level members of a valid body, taken from `known` if that is the same body."""
    return known.members if known is not None and known.body is body else _decode_members(body)


def spans(body: bytes, members: Mapping[str, msgspec.Raw]) -> dict[str, tuple[int, int]]:
    """The start and end of each top-level value in the body. Raises `BadRequest` for duplicate names.

    The decoder has already found the length of every value; only the names between them are read here, so the cost does
    not grow with the values.
    """
    found: dict[str, tuple[int, int]] = {}
    at = body.index(b"{") + 1
    for _ in range(len(members)):
        match = _KEY.match(body, at)
        if match is None:
            raise _duplicate(body, at)
        literal = match[1]
        name = literal[1:-1].decode() if b"\\" not in literal else msgspec.json.decode(literal, type=str)
        start = match.end()
        # Of duplicate names the decoder kept the last value: either the bytes here differ, or the name comes again.
        value = members.get(name, b"")
        end = start + memoryview(value).nbytes
        after = _NEXT.match(body, end)
        if after is None or name in found or not body.startswith(value, start):
            raise BadRequest(f'The request body has "{_shown(name)}" more than once.', param=_shown(name))
        found[name] = (start, end)
        at = after.end()
        if after[1] == b"}":
            break
    else:
        if members:
            raise _duplicate(body, at)
    return found


def patch(body: bytes, changes: Mapping[str, bytes | None], known: Mapping[str, msgspec.Raw] | None = None) -> bytes:
    """The body with these top-level members set to the given JSON, every other byte as it was.

    Members that are absent are inserted first. `None` sets the value to `null`, which every server reads as absent.
    `known` are the body's members, if they have been decoded already.
    """
    members = _decode_members(body) if known is None else known
    # To insert, it is enough to know that there are members: looking for their places takes ten times as long.
    where = spans(body, members) if not members.keys().isdisjoint(changes) else {}
    edits = sorted((where[name], value or b"null") for name, value in changes.items() if name in where)
    added = [(name, value) for name, value in changes.items() if name not in where and value is not None]
    pieces: list[bytes] = []
    at = 0
    if added:
        at = body.index(b"{") + 1
        pieces.append(body[:at])
        pieces.append(b",".join(msgspec.json.encode(name) + b":" + value for name, value in added))
        if members:
            pieces.append(b",")
    for (start, end), value in edits:
        pieces += (body[at:start], value)
        at = end
    pieces.append(body[at:])
    return b"".join(pieces)


def check_size(body: bytes) -> None:
    """Raise `BadRequest` for a body with too many keys or nested too deep, before it is decoded."""
    _check_keys(body)
    if _brackets(body) > MAX_DEPTH:
        _check_levels(body, MAX_DEPTH)
    _check_values(body)


def check_surrogates(body: bytes) -> None:
    """Raise `BadRequest` for half of a surrogate pair, escaped or as bytes: parsers disagree about it, and no model reads it."""
    raw = _RAW_SURROGATE.search(body)
    at = None if raw is None else raw.start()
    if b"\\ud" in body or b"\\uD" in body:
        at = next((match.start() for match in _ESCAPE.finditer(body) if match[1]), at)
    if at is not None:
        raise BadRequest(
            f"The request body is not valid JSON: a lone surrogate (byte {at}) is not a character; "
            "send both halves of the pair, or remove it."
        )


def _check_values(body: bytes) -> None:
    if len(body) > MAX_VALUES and body.count(b",") > MAX_VALUES and _commas(body) > MAX_VALUES:
        raise BadRequest(f"The request body has more than {MAX_VALUES} values.")


def _check_keys(body: bytes) -> None:
    # Quotes inside strings are escaped, so this counts keys (and strings that begin with a colon).
    if len(body) > _SMALL and body.count(b":") > MAX_KEYS and body.count(b'":') - body.count(b'\\":') > MAX_KEYS:
        raise BadRequest(f"The request body has more than {MAX_KEYS} keys.")


def _check_depth(members: Mapping[str, msgspec.Raw]) -> int:
    """The number of colons that the body of these members has if no name is duplicated or contains a colon."""
    # A value with few brackets cannot be deep. Long lists (messages, tools) are checked entry by entry, so that only an
    # entry with many brackets of its own is scanned.
    colons = len(members)
    for member in members.values():
        value = bytes(member)
        colons += value.count(b":")
        brackets = value.count(b"[") + value.count(b"{")
        if brackets < MAX_DEPTH:
            continue
        if brackets <= MAX_BRACKETS and value.startswith(b"[") and value.count(b",") < _FEW:
            for entry in map(bytes, _decode_entries(value)):
                if _brackets(entry) >= MAX_DEPTH - 1:
                    _check_levels(entry, MAX_DEPTH - 2)
        else:
            _check_levels(value, MAX_DEPTH - 1)
    return colons


def _brackets(value: bytes) -> int:
    return value.count(b"[") + value.count(b"{")


def _check_levels(value: bytes, most: int) -> None:
    """Count the brackets outside of strings, block by block: neither time nor memory depends on the content."""
    at = depth = brackets = inside = 0
    while at < len(value):
        block = value[at : at + _BLOCK]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:
            block = value[at : at + len(block) + 1]  # never cut an escape in two
        at += len(block)
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Two quotes without a bracket between them change nothing.
        marks = block.translate(None, _NO_MARKS).replace(b'""', b"").split(b'"')
        outside = b"".join(marks[inside::2])
        inside ^= (len(marks) - 1) % 2
        brackets += len(outside)
        if brackets > 2 * MAX_BRACKETS:
            raise BadRequest(f"The request body has more than {MAX_BRACKETS} lists and objects.")
        steps = array("b", outside.translate(_STEPS))
        if max(accumulate(steps, initial=depth)) > most:
            raise _too_deep()
        depth += sum(steps)


def _commas(body: bytes) -> int:
    """The commas outside of strings, counted block by block."""
    at = inside = commas = 0
    while at < len(body):
        block = body[at : at + _BLOCK]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:
            block = body[at : at + len(block) + 1]  # never cut an escape in two
        at += len(block)
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        marks = block.translate(None, _NO_COMMAS).replace(b'""', b"").split(b'"')
        commas += sum(map(len, marks[inside::2]))
        inside ^= (len(marks) - 1) % 2
        if commas > MAX_VALUES:
            break
    return commas


def _too_deep() -> BadRequest:
    return BadRequest(f"The request body is nested more than {MAX_DEPTH} levels deep.")


def _duplicate(body: bytes, at: int) -> BadRequest:
    return BadRequest(f"The request body has a key more than once (near byte {at}).")


def _malformed(body: bytes, error: msgspec.DecodeError) -> str:
    if not body.strip():
        return "The request body is empty; a JSON object is expected."
    reason = str(error).removeprefix("JSON is malformed: ")
    return f"The request body is not valid JSON: {reason}."


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:200])
