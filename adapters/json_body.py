"""A JSON request body as bytes: checked, looked into at the top level and spliced, never materialised as a whole.

`JsonBody` answers what a gateway must know of a body before it forwards it; `patch` changes a few top-level
members and leaves every other byte as it came.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from itertools import accumulate
from typing import TypeVar

import msgspec

from hostler.adapters.errors import BadRequest

#: What decoding raises for bytes that are not JSON, or not the JSON that was asked for: besides msgspec's own errors
#: Python's, for text that is not UTF-8 and for what is nested too deep.
NOT_JSON = (msgspec.DecodeError, UnicodeError, RecursionError)

MAX_DEPTH = 128
MAX_KEYS = 100_000
MAX_BRACKETS = 100_000

# A body this small cannot hold so many keys that reading them takes long.
_SMALL = 64 * 1024

# A list that cannot hold more entries than this is looked at entry by entry.
_FEW = 50_000
_BLOCK = 256 * 1024

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_entries = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str | None)
_flag = msgspec.json.Decoder(bool | None)
_number = msgspec.json.Decoder(int | None)
_KEY = re.compile(rb'[ \t\n\r]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_NEXT = re.compile(rb"[ \t\n\r]*([,}])")
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")

T = TypeVar("T")


class JsonBody:
    """The top-level members of a JSON object, by name, as undecoded bytes.

    Raises `BadRequest` for anything that is not one well-formed JSON object, and for what parsers disagree about:
    a name that comes twice, bytes that are not UTF-8, lone surrogates, a depth beyond `MAX_DEPTH`, and
    for more than `MAX_KEYS` names, or a member of more than `MAX_BRACKETS` lists and objects.
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
            raise BadRequest(f"The request body is not UTF-8 (byte {error.start}).") from None
        except RecursionError:
            raise _too_deep() from None
        except msgspec.ValidationError:
            raise BadRequest("The request body must be a JSON object.") from None
        except msgspec.DecodeError as error:
            raise BadRequest(_malformed(body, error)) from None
        colons = body.count(b":")
        # Colons between names and values only, and one object: nothing comes twice, and nothing but lists can be deep.
        if colons == len(self.members) and body.count(b"[") < MAX_DEPTH and body.count(b"{") == 1:
            return
        if _check_depth(self.members) != colons:
            spans(body, self.members)

    def text(self, name: str) -> str | None:
        """The member as a string; `None` if it is absent or null. Raises `BadRequest` if it is anything else."""
        return self.get(name, _text, words="a string")

    def flag(self, name: str) -> bool:
        """The member as true or false; false if it is absent or null."""
        return self.get(name, _flag, words="true or false") or False

    def number(self, name: str) -> int | None:
        """The member as an integer; `None` if it is absent or null."""
        return self.get(name, _number, words="an integer")

    def get(self, name: str, decoder: msgspec.json.Decoder[T | None], *, words: str) -> T | None:
        """The member, decoded; `None` if it is absent or null. `words` says in an error what it should have been."""
        raw = self.members.get(name)
        if raw is None:
            return None
        try:
            return decoder.decode(raw)
        except msgspec.ValidationError:
            raise BadRequest(f"`{name}` must be {words}.", param=name) from None

    def has(self, name: str) -> bool:
        """Whether the member is there and not null."""
        raw = self.members.get(name)
        return raw is not None and bytes(raw) != b"null"


def members(body: bytes, known: JsonBody | None = None) -> dict[str, msgspec.Raw]:
    """The top-level members of a body that has been checked before; read again only if `known` is not this very body's."""
    return known.members if known is not None and known.body is body else _decode_members(body)


def spans(body: bytes, members: Mapping[str, msgspec.Raw]) -> dict[str, tuple[int, int]]:
    """Where each top-level member's value stands in the body. Raises `BadRequest` for a name that comes twice.

    The decoder has already found every value's length; here only the names between them are read, so the work
    does not grow with the values.
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
        # For a name that comes twice the decoder kept the last value: the bytes here are others, or are met again.
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

    Members that are absent are put first. `None` leaves the value `null`, which every server reads as absent.
    `known` are the body's members, if they have been read already.
    """
    where = spans(body, _decode_members(body) if known is None else known)
    edits = sorted((where[name], value or b"null") for name, value in changes.items() if name in where)
    added = [(name, value) for name, value in changes.items() if name not in where and value is not None]
    pieces: list[bytes] = []
    at = 0
    if added:
        at = body.index(b"{") + 1
        pieces.append(body[:at])
        pieces.append(b",".join(msgspec.json.encode(name) + b":" + value for name, value in added))
        if where:
            pieces.append(b",")
    for (start, end), value in edits:
        pieces += (body[at:start], value)
        at = end
    pieces.append(body[at:])
    return b"".join(pieces)


def check_size(body: bytes) -> None:
    """Raises `BadRequest` for a body with too many keys or nested too deep, before anything decodes it."""
    _check_keys(body)
    if _brackets(body) > MAX_DEPTH:
        _check_levels(body, MAX_DEPTH)


def _check_keys(body: bytes) -> None:
    # Inside a string a quote is escaped, so what is counted are keys (and strings that begin with a colon).
    if len(body) > _SMALL and body.count(b":") > MAX_KEYS and body.count(b'":') - body.count(b'\\":') > MAX_KEYS:
        raise BadRequest(f"The request body has more than {MAX_KEYS} keys.")


def _check_depth(members: Mapping[str, msgspec.Raw]) -> int:
    """How many colons the body of these members has if each name comes once, and there is none in a name."""
    # What holds few brackets cannot be deep. Long lists (messages, tools) are looked at entry by entry, so that only
    # an entry with many brackets of its own is read mark by mark.
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
    """Follow the brackets outside of strings, block by block: neither time nor memory depends on what is in it."""
    at = depth = brackets = inside = 0
    while at < len(value):
        block = value[at : at + _BLOCK]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:
            block = value[at : at + len(block) + 1]  # an escape is not cut in two
        at += len(block)
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Two quotes with no bracket between them change nothing, wherever they stand.
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
