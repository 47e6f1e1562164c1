"""Custom tools of OpenAI's protocol, whose input is text, as functions with one string for models that know only functions."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from hostler.adapters.canonical import Tool
from hostler.adapters.json_body import NOT_JSON

#: The only parameter of such a function.
PARAMETER = "input"

_START = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_FIRST_HALF = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_TOKEN = re.compile(rf'[^"\\]+|{_FIRST_HALF}\\u[dD][c-fC-F][0-9a-fA-F]{{2}}|\\u[0-9a-fA-F]{{4}}|\\["\\/bfnrt]')
_HALF = re.compile(rf"{_FIRST_HALF}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?")
_LONGEST_ESCAPE = 12
_LONGEST_START = 256


_MARKS = (b'"custom"', b'"custom_tool_call"')


class CustomFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the input of a custom tool looks like: any text, or one that a grammar describes."""

    type: str = "text"
    syntax: str | None = None
    definition: str | None = None


def has_custom_tools(body: bytes) -> bool:
    """Whether a request may have custom tools, or calls of some."""
    return any(mark in body for mark in _MARKS)


def as_function(name: str, description: str | None, wanted: CustomFormat | None) -> Tool:
    """The function that stands for a custom tool."""
    words = [description] if description else []
    words.append(f"Pass the whole text as the string `{PARAMETER}`, whatever else is said about its form.")
    if wanted is not None and wanted.definition:
        words.append(f"The text must match this {wanted.syntax or 'lark'} grammar:\n{wanted.definition}")
    schema = {
        "type": "object",
        "properties": {PARAMETER: {"type": "string", "description": f"The input of {name}, as plain text."}},
        "required": [PARAMETER],
        "additionalProperties": False,
    }
    return Tool(name=name, description="\n\n".join(words), parameters=msgspec.Raw(msgspec.json.encode(schema)))


def as_arguments(text: str) -> str:
    """The arguments of the function for the input of a custom tool."""
    return msgspec.json.encode({PARAMETER: text}).decode()


def as_input(arguments: str) -> str:
    """The input of a custom tool in the arguments of its function, or whatever a model sent instead of them."""
    try:
        value = msgspec.json.decode(arguments)
    except NOT_JSON:
        return arguments
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        texts = [each for each in value.values() if isinstance(each, str)]
        given = value.get(PARAMETER)
        if isinstance(given, str) or len(texts) == 1:
            return given if isinstance(given, str) else texts[0]
    return arguments


class InputReader:
    """Reads the input of one call from the pieces of its arguments, as far as it is certain."""

    __slots__ = ("_arguments", "_ended", "_rest", "_started")

    def __init__(self) -> None:
        self._arguments: list[str] = []
        self._rest = ""
        self._started = False
        self._ended = False

    def feed(self, piece: str) -> str:
        """The next piece of the input; empty while nothing is certain."""
        self._arguments.append(piece)
        if self._ended:
            return ""
        self._rest += piece
        if not self._started:
            start = _START.match(self._rest)
            if start is None:
                self._ended = len(self._rest) > _LONGEST_START
                return ""
            self._started, self._rest = True, self._rest[start.end() :]
        return self._take()

    def finish(self) -> str:
        """The last piece of the input: all of it if the arguments have another form."""
        return "" if self._started else as_input("".join(self._arguments))

    def _take(self) -> str:
        """The text up to the closing quote, or up to an escape that is not complete."""
        rest, at, found = self._rest, 0, list[str]()
        while match := _TOKEN.match(rest, at):
            if _HALF.fullmatch(rest, at):
                break  # its other half may follow
            found.append(_decoded(match[0]))
            at = match.end()
        self._rest = rest[at:]
        # What is no JSON ends the input as well.
        self._ended = self._rest.startswith('"') or len(self._rest) > _LONGEST_ESCAPE
        return "".join(found)


def _decoded(token: str) -> str:
    if not token.startswith("\\"):
        return token
    try:
        return msgspec.json.decode(f'"{token}"', type=str)
    except NOT_JSON:
        return "\ufffd"  # half a surrogate pair
