"""llama-server's models: its list, and the properties of the one that it runs."""

from __future__ import annotations

import pytest
from fakes import model_lists
from fakes.questions import answered

from hostler.adapters.llamacpp.discovery import discover
from hostler.adapters.remote_models import ListUnavailable


def test_the_running_model_is_described_by_the_servers_properties() -> None:
    report, _ = answered(discover(), model_lists.LLAMA_SERVER)
    (model,) = report.models
    assert (model.name, model.context, model.running_context) == ("Llama-3.1-8B-Q4_K_M", 16384, 16384)
    assert model.capabilities == ("completion", "vision", "tools")
    assert (model.quantization, model.parameters, model.embedding_length) == ("Q4_K_M", 8_030_261_312, 4096)


def test_an_older_server_without_properties_is_listed_as_well() -> None:
    documents = {"/v1/models": model_lists.LLAMA_SERVER["/v1/models"]}
    report, _ = answered(discover(), documents)
    assert [(model.name, model.context) for model in report.models] == [("Llama-3.1-8B-Q4_K_M", 16384)]


@pytest.mark.parametrize("name", ["ggml-org/gemma-3-4b-it-GGUF", "qwen3", "org/model:Q4_K_M"])
def test_only_paths_are_shortened(name: str) -> None:
    documents = {"/v1/models": {"data": [{"id": name}]}, "/props": {"model_path": "/m.gguf"}}
    report, _ = answered(discover(), documents)
    assert report.models[0].name == name


def test_a_routers_models_are_not_described_by_its_properties() -> None:
    documents = {"/v1/models": {"data": [{"id": "a"}]}, "/props": {"role": "router", "chat_template": "tools"}}
    report, _ = answered(discover(), documents)
    assert report.models[0].capabilities is None


def test_a_server_that_is_no_llama_server_has_no_list() -> None:
    with pytest.raises(ListUnavailable):
        answered(discover(), {})
