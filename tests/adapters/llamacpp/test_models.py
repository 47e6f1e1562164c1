"""llama-server's information about itself and its models, from the catalogue alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from hostler.adapters import sse
from hostler.adapters.base import Incoming
from hostler.adapters.errors import BadRequest, ModelNotFound
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.profiles.schema import ModelFacts

ADAPTER = LlamaCppAdapter()


A = ModelCard(
    name="a", aliases=("tiny",), context=2048, parallel=2, state="loaded", capabilities=("completion", "tools")
)


B = ModelCard(
    name="b", context=1024, facts=ModelFacts(chat_template="{{ x }}", quantization="Q4_1", training_context=8192)
)


LISTING = ModelList(cards=(B, A), index={"a": A, "tiny": A, "b": B}, active="a", version="1.2")


def get(path: str, query: str = "", *, listing: ModelList = LISTING, method: str = "GET") -> tuple[int, Any]:
    operation = next(one for one in ADAPTER.operations if one.path == path and method in one.methods)
    response = ADAPTER.model_info(ADAPTER.decode(operation, Incoming(method=method, path=path, query=query)), listing)
    return response.status, json.loads(response.body)


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_has_nothing_but_the_status(path: str) -> None:
    assert get(path) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/props", "/v1/props"])
def test_props_are_of_the_named_or_the_active_model(path: str) -> None:
    _, active = get(path)
    _, named = get(path, "model=b&autoload=false")
    assert (active["model_alias"], active["default_generation_settings"]["n_ctx"], active["total_slots"]) == (
        "a",
        2048,
        2,
    )
    assert active["role"] == "router"
    assert "role" not in named
    assert (named["model_alias"], named["default_generation_settings"]["n_ctx"]) == ("b", 1024)
    assert (named["chat_template"], named["model_ftype"]) == ("{{ x }}", "Q4_1")


def test_the_only_context_length_is_the_real_one() -> None:
    assert "8192" not in json.dumps([get("/props", "model=b"), get("/slots", "model=b")])


def test_props_exist_without_models() -> None:
    assert get("/props", listing=ModelList())[1]["default_generation_settings"]["n_ctx"] == 0
    assert get("/slots", listing=ModelList()) == (200, [])


def test_there_are_as_many_slots_as_the_model_has() -> None:
    assert get("/slots")[1] == [
        {"id": number, "n_ctx": 2048, "speculative": False, "is_processing": False} for number in (0, 1)
    ]
    assert len(get("/slots", "model=b&fail_on_no_slot=1")[1]) == 1


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="the models are: b, a"):
        get("/props", "model=c")


def test_an_ambiguous_query_is_rejected() -> None:
    for query in ("model=a&model=b", "&".join(f"x{number}=1" for number in range(100))):
        with pytest.raises(BadRequest):
            get("/props", query)


def test_the_version_is_the_gateways() -> None:
    assert get("/version") == (200, {"version": "1.2"})


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/props", 501, "not_supported_error"), ("POST", "/slots/{id}", 501, "not_supported_error"),
        ("POST", "/models", 501, "not_supported_error"), ("DELETE", "/models", 501, "not_supported_error"),
        ("GET", "/tools", 403, "feature_disabled"),
        ("POST", "/cors-proxy", 403, "feature_disabled"),
    ],
)  # fmt: skip
def test_unsupported_routes_are_refused_with_a_message(method: str, path: str, status: int, kind: str) -> None:
    result, body = get(path, method=method)
    assert (result, body["error"]["code"], body["error"]["type"]) == (status, status, kind)
    assert body["error"]["message"]


def news(before: ModelList | None, now: ModelList) -> list[tuple[str, str, Any]]:
    """The change events as (model, event, data)."""
    events = [json.loads(data) for _, data in sse.iter_events(ADAPTER.change_events(before, now))]
    return [(each["model"], each["event"], each["data"]) for each in events]


def of(*cards: ModelCard) -> ModelList:
    return ModelList(cards=cards)


def test_the_first_change_events_have_the_state_of_every_model() -> None:
    assert news(None, LISTING) == [
        ("b", "model_status", {"status": "unloaded"}),
        ("a", "model_status", {"status": "loaded"}),
        ("tiny", "model_status", {"status": "loaded"}),
    ]


def test_loading_is_reported_in_the_routers_events() -> None:
    def b(state: str, percent: float | None = None) -> ModelList:
        return of(A, msgspec.structs.replace(B, state=state, percent=percent))

    progress = {"stages": ["text_model"], "current": "text_model", "value": 0.25}
    assert news(b("unloaded"), b("loading")) == [("b", "status_change", {"status": "loading"})]
    assert news(b("loading"), b("loading", 25.0)) == [
        ("b", "status_change", {"status": "loading", "progress": progress})
    ]
    assert news(b("loading", 25.0), b("loading", 25.0)) == []
    assert news(b("loading", 25.0), b("loaded")) == [("b", "status_change", {"status": "loaded"})]
    assert news(b("loaded"), b("unloaded")) == [("b", "status_change", {"status": "unloaded"})]
    assert news(b("loading"), b("failed")) == [("b", "status_change", {"status": "unloaded", "exit_code": 1})]


def test_added_and_removed_models_are_reported() -> None:
    hidden = msgspec.structs.replace(B, listed=False)
    assert news(of(A), of(A, B)) == [("*", "models_reload", None)]
    assert news(of(A, B), of(A, hidden)) == [("b", "model_remove", None)]


def test_no_model_is_hidden_from_the_web_ui() -> None:
    assert get("/props", "model=b")[1]["ui"] is True


def test_the_list_of_models_serves_both_protocols() -> None:
    failed = ModelCard(name="c", state="failed")
    openai = OpenAIAdapter()
    operation = next(one for one in openai.operations if one.path == "/models")
    request = openai.decode(operation, Incoming(method="GET", path="/models"))
    body = json.loads(openai.model_info(request, ModelList(cards=(A, failed))).body)
    assert [(entry["id"], entry["status"]) for entry in body["data"]] == [
        ("a", {"value": "loaded"}), ("c", {"value": "unloaded", "failed": True}), ("tiny", {"value": "loaded"}),
    ]  # fmt: skip
