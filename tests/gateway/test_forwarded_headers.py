"""Headers of clients that go on to a backend."""

from __future__ import annotations

import pytest

from hostler.gateway.forwarded_headers import forwarded_headers, pattern_mistake

CLIENT = {
    "authorization": "Bearer k", "x-api-key": "k", "cookie": "a=b", "x-forwarded-for": "10.0.0.1", "host": "h",
    "x-hostler-only": "b", "x-team-name": "blue", "x-team-token": "t", "x-user": "me", "openai-organization": "o",
}  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], set()),
        (["x-*"], {"x-team-name", "x-user"}),
        (["X-Team-*"], {"x-team-name"}),
        (["x-team-token", "OpenAI-Organization"], {"x-team-token", "openai-organization"}),
        (["authorization", "x-api-key", "cookie", "x-forwarded-for", "x-hostler-only"], set()),
    ],
)
def test_only_what_is_named_goes_on_and_never_a_key(patterns: list[str], names: set[str]) -> None:
    assert {name for name, _ in forwarded_headers(patterns, CLIENT, ())} == names


def test_headers_of_the_backend_are_not_replaced() -> None:
    assert forwarded_headers(["x-user"], CLIENT, [("X-User", "house")]) == ()


@pytest.mark.parametrize(
    ("pattern", "mistake"),
    [
        ("x-*", None),
        ("X-User", None),
        ("*", "is no name of a header"),
        ("x-*-id", "is no name of a header"),
        ("a b", "is no name of a header"),
        ("Authorization", "is never passed on"),
        ("x-forwarded-for", "is never passed on"),
    ],
)
def test_a_mistake_in_a_pattern_is_said(pattern: str, mistake: str | None) -> None:
    said = pattern_mistake(pattern)
    assert said is None if mistake is None else mistake in (said or "")
