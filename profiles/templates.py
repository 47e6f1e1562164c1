"""Command templates: words with `${variables}`, optional groups of words, and macros that several of them share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

#: A word, or words that are left out together where one of their variables has no value.
TemplateWord = str | tuple[str, ...]

#: A variable's value; several words where it stands alone, joined by spaces inside of a word.
TemplateValue = str | tuple[str, ...]

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_HOME = re.compile(r"(^|=)~(?=/|$)")
_MAX_DEPTH = 8


class TemplateError(ValueError):
    """A template with an unknown variable, or with macros that contain themselves."""


def variables(words: Sequence[TemplateWord]) -> frozenset[str]:
    """The names of all variables in the words."""
    return frozenset(name for word in _flat(words) for name in _REFERENCE.findall(word))


def expand(words: Sequence[TemplateWord], values: Mapping[str, TemplateValue]) -> tuple[str, ...]:
    """The words of a command. `~` at the start of a word, or of a value after `=`, is the home folder.

    A group with a variable that is empty is left out. Raises `TemplateError` for an unknown variable.
    """
    expanded: list[str] = []
    for word in words:
        if isinstance(word, tuple) and any(not _value(name, values) for name in variables(word)):
            continue
        for each in (word,) if isinstance(word, str) else word:
            expanded += _expand_word(each, values)
    return tuple(_HOME.sub(lambda match: match[1] + str(Path.home()), word) for word in expanded)


def expand_text(text: str, values: Mapping[str, TemplateValue]) -> str:
    """The text with its variables replaced. Raises `TemplateError` for an unknown one."""
    return _REFERENCE.sub(lambda match: _joined(_value(match[1], values)), text)


def apply_macros(words: Sequence[TemplateWord], macros: Mapping[str, TemplateValue]) -> tuple[TemplateWord, ...]:
    """The words with macros replaced and all other variables kept. Raises `TemplateError` for circular macros."""
    replaced: list[TemplateWord] = []
    for word in words:
        if isinstance(word, str):
            replaced += _macro_words(word, macros)
        else:
            replaced.append(tuple(each for one in word for each in _macro_words(one, macros)))
    return tuple(replaced)


def apply_macros_to_text(text: str, macros: Mapping[str, TemplateValue]) -> str:
    """The text with macros replaced and all other variables kept. Raises `TemplateError` for circular macros."""
    return " ".join(_macro_words(text, {name: _joined(value) for name, value in macros.items()}))


def _macro_words(word: str, macros: Mapping[str, TemplateValue], depth: int = 0) -> list[str]:
    names = [name for name in _REFERENCE.findall(word) if name in macros]
    if not names:
        return [word]
    if depth > _MAX_DEPTH:
        raise TemplateError(f"the macro {names[0]} contains itself")
    kept = {name: f"${{{name}}}" for name in _REFERENCE.findall(word)}
    return [
        each
        for replaced in _expand_word(word, {**kept, **{name: macros[name] for name in names}})
        for each in _macro_words(replaced, macros, depth + 1)
    ]


def _expand_word(word: str, values: Mapping[str, TemplateValue]) -> list[str]:
    alone = _REFERENCE.fullmatch(word)
    value = _value(alone[1], values) if alone else None
    return list(value) if isinstance(value, tuple) else [expand_text(word, values)]


def _value(name: str, values: Mapping[str, TemplateValue]) -> TemplateValue:
    try:
        return values[name]
    except KeyError:
        raise TemplateError(f"${{{name}}} is unknown; variables are: {', '.join(sorted(values))}") from None


def _joined(value: TemplateValue) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _flat(words: Sequence[TemplateWord]) -> Iterator[str]:
    for word in words:
        yield from (word,) if isinstance(word, str) else word
