"""The admin client: how a gateway is found, and errors that say what to do."""

from __future__ import annotations

from hostler.gateway.cli.client import unknown_model


def test_an_unknown_model_is_answered_with_the_nearest_and_the_first_names() -> None:
    text = unknown_model("m29x", [f"m{number}" for number in range(30)])
    assert "did you mean m29?" in text
    assert text.endswith("m18, m19 and 10 more, see `hostler models`")
