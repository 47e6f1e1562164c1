"""Which models llama-swap runs together, as groups and sets: its `groups`, and the expressions of its `matrix`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence, Sized

import msgspec

#: As many sets are written out at most: each is looked at for every load.
MAX_SETS = 512
_MAX_DEPTH = 32
_TOKEN = re.compile(r"\s*(?:(\+?[A-Za-z0-9_.:/-]+)|([&|()]))")


class InvalidExpression(Exception):
    """An expression of `matrix.sets` that cannot be written out."""


class SwapGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group: with `swap` one of its members runs at a time, with `exclusive` no other group runs beside it, unless that
    one is `persistent`."""

    members: tuple[str, ...]
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


class TogetherRules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of `supervisor.groups` and `supervisor.sets`."""

    groups: Mapping[str, tuple[str, ...]] = {}
    sets: tuple[tuple[str, ...], ...] = ()


def rules_of(groups: Mapping[str, SwapGroup], models: Sequence[str]) -> TogetherRules:
    """The rules for groups. Models of no group are exclusive and run one at a time.

    The members of groups that are not exclusive are part of every set: a model of an exclusive group does not unload them.
    """
    grouped = {member for group in groups.values() for member in group.members}
    rest = SwapGroup(members=tuple(name for name in models if name not in grouped))
    beside: list[str] = []
    alternatives: list[tuple[str, ...]] = []
    swapping: dict[str, tuple[str, ...]] = {}
    for name, group in (*groups.items(), ("", rest)):
        if group.persistent or not group.exclusive:
            beside += group.members
            if group.swap and len(group.members) > 1:
                swapping[name] = group.members
        elif group.swap:
            alternatives += [(member,) for member in group.members]
        elif group.members:
            alternatives.append(group.members)
    sets = [tuple(dict.fromkeys((*each, *beside))) for each in alternatives]
    if not alternatives and beside:
        sets = [tuple(dict.fromkeys(beside))]
    return TogetherRules(groups=swapping, sets=tuple(sets))


def kept_loaded(groups: Mapping[str, SwapGroup], models: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The groups that `rules_of` keeps loaded where llama-swap unloads models, each with what is different."""
    grouped = {member for group in groups.values() for member in group.members}
    has_rest = not grouped.issuperset(models)  # exclusive, as a group
    found: list[tuple[str, str]] = []
    for name, group in groups.items():
        others = [each for other, each in groups.items() if other != name and each.members]
        if not group.members:
            continue
        leaving = [other for other, each in groups.items() if other != name and _stays(each)]
        if group.exclusive and not group.persistent and leaving:
            found.append((name, f"its models do not unload those of {', '.join(leaving)}"))
        if group.persistent != group.exclusive:
            continue
        if group.persistent and (has_rest or not all(each.persistent for each in others)):
            found.append((name, "its models do not unload those of other groups"))
        elif not group.persistent and (has_rest or any(each.exclusive for each in others)):
            found.append(
                (name, "its models stay loaded beside those of exclusive groups, and are not unloaded for them")
            )
    return tuple(found)


def _stays(group: SwapGroup) -> bool:
    """Whether an exclusive group unloads its models in llama-swap, but not here."""
    return bool(group.members) and not group.persistent and not group.exclusive


def written_out(expressions: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """The sets that the expressions stand for: `(a | b) & c` is `a` with `c`, and `b` with `c`. Raises
    `InvalidExpression`."""
    found: dict[tuple[str, ...], None] = {}
    for name in expressions:
        for each in _Expression(expressions, (name,)).sets():
            found[each] = None
        _limit(found)
    return tuple(found)


class _Expression:
    """Reads one expression: `|` binds less than `&`."""

    def __init__(self, expressions: Mapping[str, str], open_names: tuple[str, ...]) -> None:
        self._expressions = expressions
        self._open = open_names
        self._tokens = _tokens(expressions[open_names[-1]])
        self._position = 0
        self._depth = 0

    def sets(self) -> list[tuple[str, ...]]:
        found = self._alternatives()
        if self._position < len(self._tokens):
            raise InvalidExpression(f"{self._tokens[self._position]!r} is not expected there")
        return found

    def _next(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _alternatives(self) -> list[tuple[str, ...]]:
        found = self._together()
        while self._next() == "|":
            self._position += 1
            found = found + self._together()
            _limit(found)
        return found

    def _together(self) -> list[tuple[str, ...]]:
        found = self._part()
        while self._next() == "&":
            self._position += 1
            others = self._part()
            _limit(range(len(found) * len(others)))
            found = [tuple(dict.fromkeys((*a, *b))) for a, b in itertools.product(found, others)]
        return found

    def _part(self) -> list[tuple[str, ...]]:
        word = self._next()
        self._position += 1
        if word == "(":
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise InvalidExpression("is nested too deep")
            found = self._alternatives()
            if self._next() != ")":
                raise InvalidExpression("a bracket is not closed")
            self._position += 1
            self._depth -= 1
            return found
        if not word or word in "&|)":
            raise InvalidExpression("a model is missing")
        if not word.startswith("+"):
            return [(word,)]
        name = word[1:]
        if name not in self._expressions:
            raise InvalidExpression(f"there is no set {name}")
        if name in self._open or len(self._open) > _MAX_DEPTH:
            raise InvalidExpression(f"the set {name} contains itself")
        return _Expression(self._expressions, (*self._open, name)).sets()


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidExpression(f"{text[position:].strip()[:20]!r} is not expected there")
        found.append(match[1] or match[2])
        position = match.end()
    return found


def _limit(sets: Sized) -> None:
    if len(sets) > MAX_SETS:
        raise InvalidExpression(f"stands for more than {MAX_SETS} sets")
