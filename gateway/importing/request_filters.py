"""Parameters that other servers remove from requests, or set in them, as rules for requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hostler.profiles.request_rules import RequestRules


def as_rules(
    *,
    drop: Sequence[str] = (),
    default: Mapping[str, Any] | None = None,
    force: Mapping[str, Any] | None = None,
    system: str = "",
) -> tuple[dict[str, Any], list[str]]:
    """The rules as a file has them, and the names that no rule can change."""
    given: dict[str, Any] = {"drop": list(drop), "default": dict(default or {}), "force": dict(force or {})}
    refused: list[str] = []
    for key, names in given.items():
        for name in list(names):
            rules = RequestRules(drop=(name,)) if key == "drop" else RequestRules(force={name: None})
            if next(rules.mistakes(), None) is not None:
                names.remove(name) if key == "drop" else names.pop(name)
                refused.append(name)
    if system:
        given["system"] = system
    return {key: value for key, value in given.items() if value}, refused
