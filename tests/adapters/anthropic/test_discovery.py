"""Anthropic's models, page by page."""

from __future__ import annotations

import pytest
from fakes import model_lists
from fakes.questions import answered

from hostler.adapters.anthropic.discovery import discover
from hostler.adapters.remote_models import ListUnavailable


def test_context_and_capabilities_are_learned() -> None:
    report, _ = answered(discover(), model_lists.ANTHROPIC)
    (model,) = report.models
    assert (model.name, model.context) == ("claude-sonnet-5", 1_000_000)
    assert model.capabilities == ("completion", "tools", "vision", "thinking")
    assert model.description == "Claude Sonnet 5"


def test_every_page_is_read() -> None:
    first = {"data": [{"id": "a"}], "has_more": True, "last_id": "a/1"}
    second = {"data": [{"id": "b"}], "has_more": False, "last_id": "b"}
    documents = {"/v1/models?limit=1000": first, "/v1/models?limit=1000&after_id=a%2F1": second}
    report, asked = answered(discover(), documents)
    assert ([model.name for model in report.models], asked) == (["a", "b"], list(documents))


def test_pages_without_end_are_not_read_without_end() -> None:
    _, asked = answered(discover(), {"/v1/models": {"data": [{"id": "a"}], "has_more": True, "last_id": "a"}})
    assert len(asked) == 10


def test_a_rejected_key_is_named() -> None:
    with pytest.raises(ListUnavailable, match="rejected the API key"):
        answered(discover(), {"/v1/models": 401})
