"""The rules for settings that types cannot express."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import UnsetType

from hostler.gateway.backend_settings import backend_errors
from hostler.gateway.cluster_settings import cluster_mistakes
from hostler.gateway.file_settings import path_mistakes
from hostler.gateway.network_rules import host_mistake, origin_mistake, proxy_mistake, root_path_mistake
from hostler.gateway.settings import LOCAL, Settings, parse_address
from hostler.gateway.wake_settings import wake_mistakes
from hostler.profiles.yaml_config import Document, DocumentError, KeyPath
from hostler.supervisor.config import SleepSettings

#: Why a text is no API key.
NO_KEY = "is no key; a key is one word of letters, digits and signs"

_NETWORK_RULES: Mapping[str, Callable[[str], str | None]] = {
    "allowed_hosts": host_mistake,
    "cors_origins": origin_mistake,
    "trusted_proxies": proxy_mistake,
}


def broken_rules(settings: Settings, document: Document) -> Iterator[DocumentError]:
    """The errors about rules that types cannot express."""
    yield from document.secret_errors()
    # Backends that could not be read count as well: they have errors of their own.
    known = list(dict.fromkeys((*settings.backends, *section_of(document.value, "backends"), LOCAL)))
    yield from _unknown_backends(document, ("gateway", "chain"), settings.gateway.chain, known)
    for name, backend in settings.backends.items():
        if name == LOCAL:
            message = "this name is reserved for the supervisor of `hostler up`; use another one"
            yield document.error(("backends", name), message)
        yield from backend_errors(document, name, backend)
    for name, variant in settings.variants.items():
        if variant.model in settings.variants:
            yield document.error(("variants", name, "model"), f"{variant.model} is a variant itself; name its model")
        for steps, message in variant.request.mistakes():
            yield document.error(("variants", name, "request", *steps), message)
    if settings.backends:  # a machine that only runs a supervisor has none
        for profile, entry in settings.profiles.items():
            yield from _unknown_backends(document, ("profiles", profile, "chain"), entry.chain or (), known)
    for index, text in enumerate(settings.gateway.api_keys):
        if not is_plain_key(text):
            yield document.error(("gateway", "api_keys", index), NO_KEY)
    endpoint = settings.gateway.tracing.endpoint
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        yield document.error(
            ("gateway", "tracing", "endpoint"), f"{endpoint!r} must be the full URL, http://.../v1/traces"
        )
    for name, check in _NETWORK_RULES.items():
        for index, text in enumerate(getattr(settings.gateway, name)):
            if (mistake := check(text)) is not None:
                yield document.error(("gateway", name, index), mistake)
    if (mistake := root_path_mistake(settings.gateway.root_path)) is not None:
        yield document.error(("gateway", "root_path"), mistake)
    for index, text in enumerate(settings.gateway.switching.loaded_only):
        try:
            re.compile(text)
        except re.error as error:
            yield document.error(("gateway", "switching", "loaded_only", index), f"is no regular expression: {error}")
    if settings.cluster is not None:
        for name, mistake in cluster_mistakes(settings.cluster):
            yield document.error(("cluster", name), mistake)
        if settings.cluster.wake is not None:
            for name, mistake in wake_mistakes(settings.cluster.wake):
                yield document.error(("cluster", "wake", name), mistake)
    for key, mistake in path_mistakes(settings):
        yield document.error(key, mistake)
    for index, listen in enumerate(settings.gateway.listen):
        yield from _address_errors(document, ("gateway", "listen", index), listen)
    yield from _address_errors(document, ("supervisor", "listen"), settings.supervisor.listen)
    if settings.supervisor.sleep is not None:
        yield from _sleep_errors(document, settings.supervisor.sleep)


def _unknown_backends(
    document: Document, path: KeyPath, chain: tuple[str, ...] | UnsetType | None, known: Sequence[str]
) -> Iterator[DocumentError]:
    for index, name in enumerate(chain or ()):
        if name not in known:
            yield document.error((*path, index), f"{name!r} is not a backend; backends are: {', '.join(known)}")


def _address_errors(document: Document, path: KeyPath, text: str) -> Iterator[DocumentError]:
    try:
        parse_address(text)
    except ValueError as error:
        yield document.error(path, str(error))


def is_plain_key(text: str) -> bool:
    """Whether clients can send this text as their key."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _sleep_errors(document: Document, sleep: SleepSettings) -> Iterator[DocumentError]:
    path = ("supervisor", "sleep")
    if (sleep.command is None) is not sleep.suspend:
        yield document.error(path, "set either `command` or `suspend: true`")
        return
    try:
        empty = not sleep.argv
    except ValueError as error:
        yield document.error((*path, "command"), f"{sleep.command!r}: {error}")
        return
    if empty:
        yield document.error((*path, "command"), "the command is empty")


def section_of(document: Any, name: str) -> Mapping[str, Any]:
    """A section as it was written; empty if there is none, or if it is something else."""
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}
