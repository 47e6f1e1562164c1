"""Which changes of requests apply to whom, and what is no change that makes sense."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.profiles.request_rules import ConditionalChanges, RequestRules


@pytest.mark.parametrize(
    ("condition", "client", "applies"),
    [
        ({"keys": ("laptop", "guest-*")}, "laptop", True),
        ({"keys": ("laptop", "guest-*")}, "guest-7", True),
        ({"keys": ("laptop",)}, "desktop", False),
        ({"clients": ("192.168.1.0/24",)}, "192.168.1.77", True),
        ({"clients": ("192.168.1.0/24",)}, "laptop", False),
        ({"clients": ("127.*",)}, "127.0.0.1", True),
        ({}, "laptop", False),
    ],
)
def test_conditions_are_names_of_keys_addresses_and_networks(
    condition: dict[str, Any], client: str, applies: bool
) -> None:
    assert ConditionalChanges(**condition).applies_to(client) is applies


def test_conditional_changes_come_after_those_for_all() -> None:
    guests = ConditionalChanges(keys=("guest-*",), force={"a": 1})
    rules = RequestRules(drop=("a",), when={"guests": guests})
    assert list(rules.for_client("guest-1")) == [rules, guests]
    assert list(rules.for_client("me")) == [rules]
    assert list(RequestRules(when={"guests": guests}).for_client("me")) == []


@pytest.mark.parametrize(
    ("rules", "path", "words"),
    [
        (RequestRules(force={"model": "x"}), ("force",), "model cannot be changed"),
        (RequestRules(rename={"a": "messages"}), ("rename",), "messages cannot be changed"),
        (RequestRules(drop=("a..b",)), ("drop",), "is not the name of a member"),
        (RequestRules(when={"x": ConditionalChanges()}), ("when", "x"), "applies to no client"),
        (RequestRules(when={"x": ConditionalChanges(keys=("k",), drop=("",))}), ("when", "x", "drop"), "not the name"),
    ],
)
def test_mistakes_are_named(rules: RequestRules, path: tuple[str, ...], words: str) -> None:
    ((found, message),) = rules.mistakes()
    assert found == path
    assert words in message
