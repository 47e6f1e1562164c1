"""llama-swap's macros: `${name}`, `${MODEL_ID}`, `${PORT}`, and `${env.NAME}` for environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hostler.gateway.importing.report import reference

_MACRO = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
#: Macros may contain others; a chain of more of them is circular, or meant to be.
_MAX_DEPTH = 16
#: As many macros are replaced in one value, and as many characters result, at most.
_MAX_REPLACED = 10_000
_MAX_LENGTH = 1024 * 1024


class UnknownMacro(Exception):
    """A text with a macro that is not defined, or with macros that contain themselves."""


def expand(value: Any, macros: Mapping[str, Any]) -> Any:
    """The value with its macros replaced, those of lists and mappings included. Raises `UnknownMacro`.

    A text that is one macro becomes the macro's value, which may be a number.
    """
    return _Expansion(macros).of(value)


class _Expansion:
    def __init__(self, macros: Mapping[str, Any]) -> None:
        self._macros = macros
        self._replaced = 0
        self._length = 0

    def of(self, value: Any) -> Any:
        match value:
            case str():
                return self._text(value, 0)
            case list():
                return [self.of(each) for each in value]
            case dict():
                return {str(self._text(key, 0)): self.of(each) for key, each in value.items()}
        return value

    def _text(self, text: str, depth: int) -> Any:
        self._length += len(text)
        if depth > _MAX_DEPTH or self._length > _MAX_LENGTH or self._replaced > _MAX_REPLACED:
            raise UnknownMacro("its macros contain themselves, or too much text")
        if (alone := _MACRO.fullmatch(text.strip())) is not None:
            return self._value(alone[1], depth)
        return _MACRO.sub(lambda match: _as_text(self._value(match[1], depth)), text)

    def _value(self, name: str, depth: int) -> Any:
        self._replaced += 1
        if name.startswith("env."):
            try:
                return reference(name[4:])
            except ValueError as error:
                raise UnknownMacro(str(error)) from None
        if name not in self._macros:
            raise UnknownMacro(f"the macro {name} is not defined")
        value = self._macros[name]
        # What stands for a variable of Hostler's own is no macro.
        if not isinstance(value, str) or value == f"${{{name.lower()}}}":
            return value
        return self._text(value, depth + 1)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
