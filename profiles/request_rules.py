"""Rules that change requests to a model, as written in a configuration file. Values only; the gateway applies them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Any

import msgspec


class RequestChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes of a request's JSON, under the names of the backend's protocol. A dot leads into an object:
    `chat_template_kwargs.enable_thinking`.

    Members that are about generating text are added to chats and completions only, and so is text to the system prompt.

    Applied in this order: `rename` moves a member, `drop` removes it, `default` adds it where the client gave none, `limits`
    lowers a number, `force` sets it whatever the client gave, and `system` is added to the system prompt. A limit of
    `max_tokens` holds under all of its names, and also where the client gave none.
    """

    rename: Mapping[str, str] = {}
    """Members of a request that get another name: the name, and the new one."""
    drop: tuple[str, ...] = ()
    """Members that are removed from a request."""
    default: Mapping[str, Any] = {}
    """Members that are added to a request where the client gave none."""
    limits: Mapping[str, int | float] = {}
    """The largest values of members of a request. A limit of `max_tokens` holds under all of its names, and is set
    where the client gave none."""
    force: Mapping[str, Any] = {}
    """Members that are set in a request whatever the client gave."""
    system: str = ""
    """A text that is added at the end of the system prompt."""

    @property
    def changes_anything(self) -> bool:
        return bool(self.rename or self.drop or self.default or self.limits or self.force or self.system)


class ConditionalChanges(RequestChanges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes for certain clients only: those whose key's name matches one of `keys`, or whose address, where no keys are
    needed, one of `clients`. Both are shell patterns, `clients` also networks."""

    keys: tuple[str, ...] = ()
    """Whose requests are changed: names of API keys, or patterns of names."""
    clients: tuple[str, ...] = ()
    """Whose requests are changed where no keys are needed: addresses, patterns or networks."""

    def applies_to(self, client: str) -> bool:
        """`client` is the name of a key, or an address."""
        return any(_matches(client, pattern) for pattern in (*self.keys, *self.clients))


class RequestRules(RequestChanges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes for all clients, then those of `when` that apply, in the order of the file. Their names are for reading
    only."""

    when: Mapping[str, ConditionalChanges] = {}
    """Changes for certain clients only, by names of your choice, made after those for all, in the order of the file."""

    def for_client(self, client: str) -> Iterator[RequestChanges]:
        """The changes for a client, in order."""
        if self.changes_anything:
            yield self
        for case in self.when.values():
            if case.applies_to(client):
                yield case

    def mistakes(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """The keys with invalid values, each with the reason."""
        yield from _mistakes(self)
        for name, case in self.when.items():
            if not case.keys and not case.clients:
                yield ("when", name), "applies to no client: name keys or clients"
            for path, message in _mistakes(case):
                yield ("when", name, *path), message


def changes_for(rules: Iterable[RequestRules], client: str) -> Iterator[RequestChanges]:
    """The changes for a client by several rules, in order."""
    for each in rules:
        yield from each.for_client(client)


#: The model and the input of a request, which rules cannot change.
_RESERVED = frozenset({"model", "messages", "stream", "prompt", "input"})


def _mistakes(changes: RequestChanges) -> Iterator[tuple[tuple[str, ...], str]]:
    named = {
        "rename": (*changes.rename, *changes.rename.values()),
        "drop": changes.drop,
        "default": tuple(changes.default),
        "limits": tuple(changes.limits),
        "force": tuple(changes.force),
    }
    for key, names in named.items():
        for name in names:
            if name in _RESERVED:
                yield (key,), f"{name} cannot be changed"
            elif not all(name.split(".")):
                yield (key,), f"{name!r} is not the name of a member"


def _matches(client: str, pattern: str) -> bool:
    if "/" in pattern:
        try:
            return ipaddress.ip_address(client) in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    return _compiled(pattern).match(client) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
