"""Names of new models."""

from __future__ import annotations

import json

import pytest
from fakes.ollama_harness import OllamaHarness


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "a/../b", "a//b", ".hidden", "x" * 81, "a/b/c/d", "x\0", "ä", "a:b:c"]
)
def test_a_new_model_needs_a_name_that_ollama_accepts(harness: OllamaHarness, name: str) -> None:
    response = harness.respond("create", {"model": name, "from": "smol"})
    assert (response.status, json.loads(response.body)) == (400, {"error": "invalid model name"})
    response = harness.respond("copy", {"source": "smol", "destination": name})
    assert response.status == 400 and json.loads(response.body)["error"].endswith("is invalid")
