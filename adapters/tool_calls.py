"""Reads the pieces of tool calls as servers really send them, into calls that every encoder writes alike.

Seen in the wild: calls without index, all with index 0, or counted from 1; two ids at one index; a head and its tail at
different indexes; interleaved pieces; a new id or the name again in every piece; the name in pieces, or after the arguments;
arguments as an object, as null, as `{}` before the real ones, once more as a whole at the end, or encoded twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from hostler.adapters import lenient
from hostler.adapters.canonical import ToolCall
from hostler.adapters.errors import BackendBroken
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.lenient import count

#: Tool calls in one answer, at most: no model makes so many, and some of what is kept of each is looked at for every piece.
MAX_CALLS = 1024

_MARKS = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_QUOTES = re.compile(r'\\.|"', re.DOTALL)
_PLACEHOLDERS = frozenset({"", "{}", "null"})
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
#: The arguments of a call that has none.
NO_ARGUMENTS = "{}"


class CallPiece(msgspec.Struct, frozen=True):
    """A piece as it came: any of its fields may be missing or of any type."""

    index: Any = None
    id: Any = None
    name: Any = None
    arguments: Any = None


class ObjectEnd:
    """Follows the pieces of a JSON object until its last brace is closed. Each piece is looked at once."""

    __slots__ = ("_depth", "_escape", "_in_string", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._in_string = False
        self._escape = ""

    def feed(self, text: str) -> None:
        """Look at the next piece."""
        if self.is_complete:
            return
        text = self._escape + text
        for mark in _MARKS.findall(text):
            if mark == '"':
                self._in_string = not self._in_string
            elif self._in_string or len(mark) > 1:
                continue
            elif mark in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    self.is_complete = True
                    return
        self._escape = _open_escape(text)


class _QuotedText:
    """Follows the pieces of a JSON string until its closing quote. Each piece is looked at once."""

    __slots__ = ("_escape", "_quotes", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._quotes = 0
        self._escape = ""

    def feed(self, text: str) -> str | None:
        """The text of the string if it ends with this piece. Whatever comes after that is dropped."""
        if self._quotes > 1:
            return None
        self.pieces.append(text)
        text = self._escape + text
        self._quotes += _QUOTES.findall(text).count('"')
        self._escape = _open_escape(text)
        if self._quotes < 2:
            return None
        try:
            return msgspec.json.decode("".join(self.pieces), type=str)
        except (msgspec.DecodeError, UnicodeError):
            return None


def _open_escape(text: str) -> str:
    """The backslash at the end whose escaped character is in the next piece; empty for none."""
    return "\\" if text.endswith("\\") and (len(text) - len(text.rstrip("\\"))) % 2 else ""


class OpenCall:
    """A call that is being read. `number` counts the calls of a response from 0; `arguments` are pieces of JSON text."""

    __slots__ = ("_end", "_quoted", "arguments", "id", "name", "number", "written")

    def __init__(self, number: int) -> None:
        self.number = number
        self.id: str | None = None
        self.name = ""
        self.arguments: list[str] = []
        self.written = False
        self._end = ObjectEnd()
        self._quoted: _QuotedText | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a whole object."""
        return self._end.is_complete

    def add(self, text: str) -> str:
        """Add the next piece of the arguments; returns what of it belongs to them."""
        if self.is_complete:
            return ""  # repeated, or white space
        if self._quoted is not None or (not self.arguments and text.lstrip().startswith('"')):
            text = self._unquote(text)
        if not self.arguments and text.strip() in _PLACEHOLDERS:
            return ""  # perhaps the real ones follow
        self.arguments.append(text)
        self._end.feed(text)
        return text

    def _unquote(self, text: str) -> str:
        """The arguments that are encoded twice, as a JSON string of JSON text, once they are complete; empty until then."""
        self._quoted = self._quoted or _QuotedText()
        inner = self._quoted.feed(text)
        if inner is None:
            return ""
        self._quoted = None
        return inner


class CallTable:
    """Decides which call each piece belongs to: by its id, else by its index, else it is the last one's."""

    __slots__ = ("_at", "_by_id", "_last", "calls")

    def __init__(self) -> None:
        self.calls: list[OpenCall] = []
        self._by_id: dict[str, OpenCall] = {}
        self._at: dict[int, OpenCall] = {}
        self._last: OpenCall | None = None

    def add(self, piece: CallPiece, *, named: set[int], whole: bool = False) -> tuple[OpenCall, str]:
        """The piece's call, with its id and name, and the text that it adds to the arguments.

        `named` are the calls that the same list has named already: it never names one twice. `whole`: each piece is a
        whole call. Raises `BackendBroken` for more than `MAX_CALLS`.
        """
        index, call_id, name = count(piece.index), _word(piece.id), _word(piece.name)
        text = arguments_text(piece.arguments)
        call = None if whole else self._find(index, call_id, name, text, named)
        if call is None:
            if len(self.calls) == MAX_CALLS:
                raise BackendBroken(f"The backend sent more than {MAX_CALLS} tool calls in one answer.")
            call = OpenCall(len(self.calls))
            self.calls.append(call)
        if name:
            if not call.arguments:
                call.name = _joined(call.name, name)
            call.name = call.name or name
            named.add(call.number)
        if call_id:
            if call.id is None and not call.written:
                call.id = call_id
            self._by_id[call_id] = call
        if index is not None:
            self._at[index] = call
        self._last = call
        return call, call.add(text)

    def _find(self, index: int | None, call_id: str, name: str, text: str, named: set[int]) -> OpenCall | None:
        """The call that the piece continues; `None` if it begins a new one."""
        known = self._by_id.get(call_id) if call_id else None
        if known is not None and not (name and name != known.name and known.name and known.is_complete):
            return known
        last = self._last
        if index is not None:
            here = self._at.get(index)
            if here is None and not (name or call_id) and last is not None and not last.is_complete:
                return last  # the tail of a call whose head had another index
            if here is None:
                return None
            last = here
        if last is None:
            return None
        has_place = index is not None or last.id is not None
        return last if _continues(last, call_id, name, text, named, has_place=has_place) else None


def _continues(call: OpenCall, call_id: str, name: str, text: str, named: set[int], *, has_place: bool) -> bool:
    """Whether a piece at this call's place belongs to it, though it does not have its id. `has_place`: it has an index,
    or the call an id, so that another call would have one as well."""
    if not name:
        # Some servers make up a new id for every piece.
        return not (call_id and call.is_complete)
    if call.number in named or (call_id and call.id):
        return False
    if not call.name:
        return True
    if name == call.name:
        # The name again, in every piece: but not after a whole call.
        return not call.is_complete and bool(call.arguments or text)
    # The rest of a name. With arguments it may be another call, unless that would have an id, too.
    return has_place and not call.arguments and (not text or bool(call.id and not call_id))


def _joined(name: str, piece: str) -> str:
    """A name and its next piece, which may be the rest of it, or all of it so far."""
    return piece if piece.startswith(name) else name + piece


class ToolCallReader:
    """Turns pieces into canonical ones: each call has a number of its own, its first piece the name, and its arguments
    are one JSON text. `holds_names`: a call is read when its name is complete, which its arguments or another call show."""

    __slots__ = ("_held", "_last", "_table", "holds_names")

    def __init__(self, *, holds_names: bool = True) -> None:
        self.holds_names = holds_names
        self._table = CallTable()
        self._held: dict[int, list[str]] = {}
        self._last: OpenCall | None = None

    def read(
        self, pieces: Iterable[CallPiece], *, whole: bool = False, named: set[int] | None = None
    ) -> tuple[ToolCall, ...]:
        """The canonical pieces for those in one list. `whole`: each is a whole call.

        `named` are the calls that earlier pieces of the same list have named, if it is read in parts.
        """
        read: list[ToolCall] = []
        named = set() if named is None else named
        for piece in pieces:
            call, text = self._table.add(piece, named=named, whole=whole)
            last, self._last = self._last, call
            if last is not None and last is not call and last.name and not last.written:
                read.append(self._head(last, ""))
            if call.written:
                if text:
                    read.append(ToolCall(index=call.number, arguments=text))
            elif call.name and (whole or not self.holds_names or call.arguments or arguments_text(piece.arguments)):
                if whole and not call.arguments:
                    text = _fill(call)
                read.append(self._head(call, text))
            else:
                self._held.setdefault(call.number, []).append(text)
        return tuple(read)

    def finish(self) -> tuple[ToolCall, ...]:
        """What is missing at the end of the response: names that never came, and arguments of calls without any."""
        rest: list[ToolCall] = []
        for call in self._table.calls:
            if not call.written:
                rest.append(self._head(call, "" if call.arguments else _fill(call)))
            elif not call.arguments:
                rest.append(ToolCall(index=call.number, arguments=_fill(call)))
        return tuple(rest)

    def _head(self, call: OpenCall, arguments: str) -> ToolCall:
        """The first piece of a call, with what was held back of its arguments, and these."""
        call.written = True
        held = "".join(self._held.pop(call.number, ()))
        return ToolCall(index=call.number, id=call.id, name=call.name, arguments=held + arguments)


def arguments_text(arguments: Any) -> str:
    """Arguments in any form as JSON text, or a piece of it; empty for none. Raises `UnicodeError` for raw bytes that are
    no text."""
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    if isinstance(arguments, msgspec.Raw):
        text = bytes(arguments).decode()
        return arguments_text(msgspec.json.decode(text)) if text.startswith(('"', "null")) else text
    try:
        return lenient.encode(arguments).decode()
    except (ValueError, msgspec.MsgspecError):
        return ""


def arguments_object(arguments: str) -> dict[str, msgspec.Raw]:
    """The arguments of an earlier call as an object, for protocols that have nothing else there. Models write some that are
    none, or are cut off: what they wrote stays readable for them."""
    if not arguments.strip():
        return {}
    try:
        return _decode_object(arguments)
    except NOT_JSON:
        return {"arguments": msgspec.Raw(lenient.encode(arguments))}


def _fill(call: OpenCall) -> str:
    call.arguments.append(NO_ARGUMENTS)
    return NO_ARGUMENTS


def _word(value: Any) -> str:
    """An id or a name; empty for null."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and count(value) is not None else ""
