"""Mistakes in the settings of the network side."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hostler.gateway.network_rules import host_mistake, origin_mistake, proxy_mistake, root_path_mistake


@pytest.mark.parametrize(
    ("check", "valid", "invalid"),
    [
        (
            host_mistake,
            ["llm.lan", "llm", "10.0.0.1:8000", "[::1]", "*.lan", "*.home.example", "llm-*.lan"],
            ["*", "*.*", "llm*", "*lan", "http://llm.lan", "llm.lan/x", "*.", "a b", ""],
        ),
        (origin_mistake, ["https://chat.lan", "app://x", "null"], ["*", "chat.lan", "https://chat.lan/"]),
        (
            proxy_mistake,
            ["127.0.0.1", "10.0.0.0/8", "10.1.2.3/8", "::1", "fd00::/8", "unix"],
            ["*", "0.0.0.0/0", "::/0", "proxy.lan", ""],
        ),
        (root_path_mistake, ["", "/llm", "/a/b-c"], ["llm", "/llm/", "/", "//x", "/a b", "/a?b"]),
    ],
)
def test_mistakes_are_named(check: Callable[[str], str | None], valid: list[str], invalid: list[str]) -> None:
    assert [text for text in valid if check(text) is not None] == []
    assert [text for text in invalid if check(text) is None] == []
    assert all(repr(text) in (check(text) or "") for text in invalid)
