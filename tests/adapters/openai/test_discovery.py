"""Lists of models in OpenAI's form, with what servers add to them."""

from __future__ import annotations

import pytest
from fakes import model_lists
from fakes.questions import answered

from hostler.adapters.openai.discovery import discover
from hostler.adapters.remote_models import ListUnavailable, RemoteModel


def only(documents: dict[str, object], prefix: str = "/v1") -> RemoteModel:
    report, _ = answered(discover((prefix,)), documents)
    (model,) = report.models
    return model


def test_vllm_tells_the_context() -> None:
    model = only(model_lists.VLLM)
    assert (model.name, model.context, model.quantization) == ("Qwen/Qwen3-8B-AWQ", 40960, "AWQ")
    assert model.capabilities is None


def test_openrouter_tells_context_and_capabilities() -> None:
    model = only(model_lists.OPENROUTER, "/api/v1")
    assert (model.name, model.context, model.created) == ("openai/gpt-5", 400_000, 1_750_000_000)
    assert model.capabilities == ("completion", "vision", "tools", "thinking")


def test_geminis_names_lose_their_prefix() -> None:
    assert only(model_lists.GEMINI, "/v1beta/openai").name == "gemini-3-flash"


def test_zais_list_is_below_its_own_path() -> None:
    assert only(model_lists.ZAI, "/api/paas/v4").name == "glm-5"


def test_mistral_tells_capabilities_as_flags_and_has_aliases() -> None:
    model = only(model_lists.MISTRAL)
    assert (model.capabilities, model.context) == (("completion", "tools"), 131_072)
    assert model.aliases == ("mistral-large-latest",)


def test_a_bare_list_is_one_too() -> None:
    assert only(model_lists.TOGETHER).capabilities == ("embedding",)


@pytest.mark.parametrize(
    ("documents", "prefix", "asked"),
    [
        (model_lists.VLLM, "/v1", ["/v1/models"]),
        (model_lists.ROOTLESS, "", ["/v1/models", "/models"]),
    ],
)
def test_where_no_path_is_given_the_first_that_has_a_list_is_used(
    documents: dict[str, object], prefix: str, asked: list[str]
) -> None:
    report, paths = answered(discover(("/v1", "")), documents)
    assert (report.prefix, paths) == (prefix, asked)


def test_a_given_path_is_never_changed_but_a_missing_v1_is_suggested() -> None:
    with pytest.raises(ListUnavailable, match="add it to the URL"):
        answered(discover(("",)), model_lists.VLLM)
    with pytest.raises(ListUnavailable, match="status 404"):
        answered(discover(("",)), {})


def test_a_rejected_key_is_not_tried_elsewhere() -> None:
    with pytest.raises(ListUnavailable, match="rejected the API key"):
        answered(discover(("/v1", "")), {"/v1/models": 401, "/models": {"data": []}})


def test_an_empty_list_is_a_list() -> None:
    report, _ = answered(discover(("/v1",)), {"/v1/models": {"data": []}})
    assert report.models == ()


def test_entries_without_a_name_and_repetitions_are_left_out() -> None:
    document = {"data": [{"id": "m"}, {"id": ""}, {"object": "model"}, {"id": "m", "context_length": 1}]}
    assert only({"/v1/models": document}).context == 0
