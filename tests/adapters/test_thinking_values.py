"""What models accept for reasoning."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.adapters.thinking_values import default_thinking, read_values, template_thinking


@pytest.mark.parametrize(
    ("template", "values", "default"),
    [
        ("{{ reasoning_effort }}", ("low", "medium", "high"), "medium"),
        ("{% if enable_thinking %}<think>", (True, False), True),
        ("<think>", (True,), True),
        ("{{ messages }}", (), None),
    ],
)
def test_a_template_says_what_it_accepts(
    template: str, values: tuple[bool | str, ...], default: bool | str | None
) -> None:
    found = template_thinking(template)
    assert (found, default_thinking(found)) == (values, default)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (["on", "off"], (True, False)), (["minimal", "low", "low", 3, None, ""], ("minimal", "low")), (None, ()),
        ({"a": 1}, ()), (["x" * 40], ("x" * 32,)), ([f"l{number}" for number in range(99)], tuple(f"l{n}" for n in range(16))),
    ],
)  # fmt: skip
def test_a_servers_values_are_bounded_and_distinct(given: Any, values: tuple[bool | str, ...]) -> None:
    assert read_values(given) == values
