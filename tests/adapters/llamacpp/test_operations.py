"""llama-server's routes."""

from __future__ import annotations

import pytest

from hostler.adapters.base import Incoming
from hostler.adapters.errors import MethodNotAllowed
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.registry import check_conflicts

ADAPTER = LlamaCppAdapter()


def test_no_path_conflicts_with_openai() -> None:
    check_conflicts([OpenAIAdapter(), ADAPTER])


def test_a_known_path_keeps_its_methods() -> None:
    with pytest.raises(MethodNotAllowed) as raised:
        ADAPTER.decode(ADAPTER.operations[-1], Incoming(method="POST", path="/v1/models/a", body=b"{}"))
    assert raised.value.allowed == ("GET", "HEAD")
    assert {method for one in ADAPTER.operations if "{rest" in one.path for method in one.methods} == {
        "GET", "POST", "PUT", "PATCH", "DELETE"
    }  # fmt: skip
