"""How backends and their models are shown."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.cli.backends import backend_rows, hidden_models, model_rows, state

MODEL = {
    "name": "m",
    "name_there": "vendor/m",
    "kind": "chat",
    "context": 4096,
    "capabilities": ["completion"],
    "quantization": "",
}


def backend(**fields: Any) -> dict[str, Any]:
    return {
        "backend": "box", "kind": "openai", "url": "http://box", "prefix": None, "reachable": True, "problem": None,
        "models": [MODEL], **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "reachable"),
        ({"reachable": False}, "unreachable"),
        ({"problem": "it has none"}, "reachable; no list of models: it has none"),
        ({"prefix": "/v1"}, "reachable; its URL has no path, /v1 worked"),
        ({"prefix": ""}, "reachable; its URL has no path, the root worked"),
    ],
)
def test_the_state_of_a_backend_says_what_worked_and_what_did_not(fields: dict[str, Any], words: str) -> None:
    assert state(backend(**fields)) == words


def test_a_backend_has_a_row() -> None:
    assert backend_rows([backend(prefix="/v1")])[0][:4] == ("box", "openai", "http://box/v1", "1")
    assert backend_rows([backend(url=None)])[0][2] == "-"


def test_models_have_rows_up_to_a_limit_and_the_rest_is_counted() -> None:
    found = [backend(models=[MODEL] * 3)]
    assert len(model_rows(found, limit=2)) == 2
    assert model_rows(found, limit=None)[2] == ("box", "m", "vendor/m", "chat", "4096", "completion", "-")
    assert list(hidden_models(found, limit=2)) == ["box has 1 more; `hostler backends box` shows all."]
    assert list(hidden_models(found, limit=None)) == []
