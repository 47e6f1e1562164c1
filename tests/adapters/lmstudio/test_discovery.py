"""LM Studio's models, from the API of its version."""

from __future__ import annotations

import pytest
from fakes import model_lists
from fakes.questions import answered

from hostler.adapters.lmstudio.discovery import discover
from hostler.adapters.remote_models import ListUnavailable


def test_kind_context_and_capabilities_are_learned() -> None:
    report, asked = answered(discover(), model_lists.LM_STUDIO)
    gemma, embedding = report.models
    assert asked == ["/api/v1/models"]
    assert (gemma.name, gemma.context, gemma.running_context) == ("gemma-3-270m-it-qat", 4096, 4096)
    assert gemma.capabilities == ("completion", "tools", "vision")
    assert (gemma.quantization, gemma.parameters, gemma.size) == ("Q4_0", 270_000_000, 241_410_208)
    assert (embedding.capabilities, embedding.context) == (("embedding",), 2048)


def test_what_a_model_accepts_for_reasoning_is_learned() -> None:
    reasoning = {"allowed_options": ["off", "low", "high", "on", "off", 3], "default": "on"}
    entry = {"key": "m", "type": "llm", "format": "mlx", "capabilities": {"reasoning": reasoning}}
    report, _ = answered(discover(), {"/api/v1/models": {"models": [entry]}})
    (model,) = report.models
    assert (model.thinking, model.thinking_default) == ((False, "low", "high", True), True)
    assert (model.capabilities, model.runner) == (("completion", "thinking"), "mlx")


def test_an_older_version_is_asked_in_its_own_way() -> None:
    report, asked = answered(discover(), model_lists.OLD_LM_STUDIO)
    (model,) = report.models
    assert asked == ["/api/v1/models", "/api/v0/models"]
    assert (model.context, model.capabilities) == (4096, ("tools", "completion", "vision"))


def test_a_server_without_either_is_asked_as_openais() -> None:
    report, _ = answered(discover(), {"/v1/models": {"data": [{"id": "m"}]}})
    assert [model.name for model in report.models] == ["m"]


def test_a_server_without_any_list_is_explained() -> None:
    with pytest.raises(ListUnavailable, match="GET /api/v1/models answered with status 404"):
        answered(discover(), {})
