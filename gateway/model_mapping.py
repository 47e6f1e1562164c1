"""The names of a backend's models: which of them are served, under which names, and what a name is called there.

`*` in a name stands for any text, once. Plain values and functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache

import msgspec

INCLUDE, EXCLUDE = "include", "exclude"


class Wildcard(msgspec.Struct, frozen=True):
    """Names of the form `ours`, and the name there: `*` in `theirs` is what `*` in `ours` stands for."""

    ours: str
    theirs: str

    @property
    def lists(self) -> bool:
        """Whether each name has a name of its own there, so that the server's models can be listed."""
        return "*" in self.theirs

    def name_there(self, name: str) -> str | None:
        """The server's name for one of ours."""
        text = _between(name, self.ours)
        return None if text is None else self.theirs.replace("*", text, 1)

    def name_here(self, name_there: str) -> str | None:
        """Our name for one of the server's."""
        text = _between(name_there, self.theirs) if self.lists else None
        return None if text is None else self.ours.replace("*", text, 1)


class ModelMapping(msgspec.Struct, frozen=True, kw_only=True):
    """`exact` and `wildcards` map our names to the server's; a narrower wildcard goes first.

    `discovers`: the server's own models are listed under their own names. They are those that one of `include` matches,
    and none of `exclude`, both as shell patterns without regard to case.
    """

    exact: Mapping[str, str] = {}
    wildcards: tuple[Wildcard, ...] = ()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    discovers: bool = True

    @staticmethod
    def parse(models: Mapping[str, str | Sequence[str]]) -> ModelMapping:
        """The mapping as written in a file: names to names, and the filters `include` and `exclude` as lists."""
        exact: dict[str, str] = {}
        wildcards: list[Wildcard] = []
        filters: dict[str, tuple[str, ...]] = {}
        for ours, theirs in models.items():
            if not isinstance(theirs, str):
                filters[ours] = tuple(theirs)
            elif "*" in ours:
                wildcards.append(Wildcard(ours, theirs))
            else:
                exact[ours] = theirs
        return ModelMapping(
            exact=exact,
            wildcards=tuple(sorted(wildcards, key=lambda each: -len(each.ours))),
            include=filters.get(INCLUDE) or ("*",),
            exclude=filters.get(EXCLUDE, ()),
            discovers=bool(filters) or not models,
        )

    def admits(self, name_there: str) -> bool:
        """Whether the filters let a model of the server pass."""
        return matches(name_there, self.include) and not matches(name_there, self.exclude)

    def names_here(self, name_there: str) -> Iterator[str]:
        """Our names for a model that the server has, without those in `exact`."""
        if not self.admits(name_there):
            return
        if self.discovers:
            yield name_there
        for wildcard in self.wildcards:
            name = wildcard.name_here(name_there)
            if name is not None and name not in self.exact and not (self.discovers and name == name_there):
                yield name

    def name_there(self, name: str) -> str | None:
        """What a model is called there as far as the mapping says; `None` if it says nothing."""
        found = self.exact.get(name)
        if found is not None:
            return found
        return next((there for each in self.wildcards if (there := each.name_there(name)) is not None), None)

    def passes(self, name: str) -> str | None:
        """The server's name for a model that is in no list, where a wildcard passes names on; else `None`."""
        for wildcard in self.wildcards:
            if wildcard.lists and (there := wildcard.name_there(name)) and self.admits(there):
                return there
        return None


def mapping_mistakes(
    models: Mapping[str, str | Sequence[str]], *, supervisor: bool = False
) -> Iterator[tuple[str, str]]:
    """The keys whose values are invalid, each with the reason."""
    for ours, theirs in models.items():
        if isinstance(theirs, str):
            if not theirs:
                yield ours, "is empty; name the model as the server does"
            elif theirs.count("*") > 1 or ours.count("*") > 1:
                yield ours, "only one * is allowed in a name"
            elif "*" in theirs and "*" not in ours:
                yield ours, f"{theirs!r} stands for many models, but {ours!r} for one; use include for a filter"
        elif ours not in (INCLUDE, EXCLUDE):
            yield ours, f"expected the model's name there; lists are for {INCLUDE} and {EXCLUDE}"
        elif supervisor:
            yield ours, "supervisors report their profiles; use listed: false in a profile to hide it"


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a shell pattern matches the name, without regard to case."""
    return bool(patterns) and _any_of(tuple(patterns))(name.lower()) is not None


def _between(name: str, form: str) -> str | None:
    """What `*` in `form` stands for in `name`, at least one character; `None` if it does not have this form."""
    before, _, after = form.partition("*")
    if len(name) <= len(before) + len(after) or not (name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)]


@lru_cache(maxsize=256)
def _any_of(patterns: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    return re.compile("|".join(translate(pattern.lower()) for pattern in patterns)).match
