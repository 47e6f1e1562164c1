"""Ollama's models: tags, what runs, and the details of those that are new."""

from __future__ import annotations

import msgspec
import pytest
from fakes import model_lists
from fakes.questions import answered

from hostler.adapters.ollama.discovery import discover
from hostler.adapters.remote_models import ListUnavailable


def test_details_and_the_context_with_which_a_model_runs_are_learned() -> None:
    report, asked = answered(discover({}), model_lists.OLLAMA)
    qwen, embedding = report.models
    assert asked == ["/api/tags", "/api/ps", "/api/show", "/api/show"]
    assert (qwen.name, qwen.context, qwen.running_context) == ("qwen3:8b", 40960, 8192)
    assert qwen.capabilities == ("completion", "tools", "vision", "thinking")
    assert (qwen.quantization, qwen.architecture, qwen.parameters) == ("Q4_K_M", "qwen3", 8_190_735_360)
    assert (qwen.thinking, qwen.thinking_default, qwen.digest) == ((True, False), True, "a" * 64)
    assert (qwen.runner, embedding.runner) == ("llamacpp", "")
    assert (embedding.capabilities, embedding.context, embedding.running_context) == (("embedding",), 2048, 0)


def test_a_context_that_is_set_counts_more_than_the_trained_one() -> None:
    shown = {**model_lists.OLLAMA["/api/show"]["qwen3:8b"], "parameters": "num_ctx                        16384\n"}
    documents = {**model_lists.OLLAMA, "/api/show": {"qwen3:8b": shown}}
    report, _ = answered(discover({}), documents)
    assert report.models[0].context == 16384


def test_models_that_have_not_changed_are_not_asked_about_again() -> None:
    report, _ = answered(discover({}), model_lists.OLLAMA)
    known = {model.name: model for model in report.models}
    again, asked = answered(discover(known), {**model_lists.OLLAMA, "/api/ps": {"models": []}})
    assert asked == ["/api/tags", "/api/ps"]
    assert again.models[0].running_context == 8192, "a model that was unloaded is loaded with the same context"


def test_numbers_that_nothing_could_send_on_are_left_out() -> None:
    shown = b'{"model_info":{"a":%d,"b":%d,"c":true}}' % (2**64, 2**64 - 1)
    report, _ = answered(discover({}), {**model_lists.OLLAMA, "/api/show": {"qwen3:8b": shown}})
    assert report.models[0].metadata == {"b": 2**64 - 1, "c": True}
    assert msgspec.msgpack.encode(report.models)


def test_a_model_whose_details_are_missing_is_listed_all_the_same() -> None:
    documents = {**model_lists.OLLAMA, "/api/show": 500, "/api/ps": 404}
    report, _ = answered(discover({}), documents)
    assert [(model.name, model.detailed) for model in report.models] == [
        ("qwen3:8b", False),
        ("nomic-embed-text:latest", False),
    ]


def test_what_ollama_has_converted_for_its_engine_is_no_model() -> None:
    tags = [*model_lists.OLLAMA["/api/tags"]["models"], {"name": f"llamacpp:{'c' * 64}", "runner": "llamacpp"}]
    report, _ = answered(discover({}), {**model_lists.OLLAMA, "/api/tags": {"models": tags}})
    assert [model.name for model in report.models] == ["qwen3:8b", "nomic-embed-text:latest"]


def test_no_models_are_a_list_as_well() -> None:
    report, asked = answered(discover({}), {"/api/tags": {"models": []}, "/api/ps": {"models": []}})
    assert (report.models, asked) == ((), ["/api/tags", "/api/ps"])


def test_a_server_that_is_no_ollama_has_no_list() -> None:
    with pytest.raises(ListUnavailable, match="GET /api/tags answered with status 404"):
        answered(discover({}), {})
