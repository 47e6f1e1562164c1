"""llama-server's routes are decoded to requests for the right engine, or never forwarded."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.llamacpp_requests import ADAPTER, UPSTREAM, decode_request
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import (
    LoadRequest,
    ModelInfoRequest,
    Passthrough,
)
from hostler.adapters.errors import BadRequest, ModelUnavailable, NotFound
from hostler.adapters.model_list import ModelCard


@pytest.mark.parametrize(
    "path", ["/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/embedding", "/v1/systemone"]
)
def test_native_requests_are_forwarded_as_they_came(path: str) -> None:
    request = decode_request("POST", path, b'{ "model":"a", "content" : "x", "new": [1.0] }')
    wire = UPSTREAM.build(request, model="a", stream=False)
    assert request.origin.wire == "llamacpp"
    assert (wire.method, wire.path, wire.body) == ("POST", path, b'{ "model":"a", "content" : "x", "new": [1.0] }')


@pytest.mark.parametrize(
    ("body", "query", "model"),
    [({"model": "a"}, "", "a"), ({}, "model=b%2Fc", "b/c"), ({"model": "a"}, "model=b", "a"), ({}, "", None)],
)
def test_the_model_is_in_the_body_or_the_query(body: Any, query: str, model: str | None) -> None:
    assert decode_request("POST", "/tokenize", body, query=query).model == model
    assert decode_request("POST", "/unknown/path", body, query=query).model == model


@pytest.mark.parametrize(
    ("path", "body", "wire"),
    [
        ("/completions", {"prompt": "x"}, "llamacpp"),
        ("/completions", {"prompt": "x", "model": "a", "n_predict": 4}, "llamacpp"),
        ("/completions", {"prompt": "x", "model": "a", "max_tokens": 4}, "openai"),
        ("/completions/", {"prompt": "x", "max_tokens": 4}, "openai"),
        ("/completion", {"prompt": "x", "max_tokens": 4}, "llamacpp"),
        ("/embeddings", {"content": "x", "model": "a"}, "llamacpp"),
        ("/embeddings", {"input": "x"}, "llamacpp"),
        ("/embeddings", {"input": "x", "model": "a"}, "openai"),
        ("/embedding", {"input": "x", "model": "a"}, "llamacpp"),
    ],
)
def test_on_shared_paths_the_fields_decide_the_protocol(path: str, body: Any, wire: str) -> None:
    assert decode_request("POST", path, body).origin.wire == wire


def test_openais_sdk_gets_openais_form_on_shared_paths() -> None:
    assert decode_request("POST", "/completions", {"prompt": "x"}, x_stainless_lang="python").origin.wire == "openai"


@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/reranking"])
def test_reranking_is_the_same_on_every_path(path: str) -> None:
    wire = UPSTREAM.build(decode_request("POST", path, {"query": "q", "documents": ["d"]}), model="m", stream=True)
    assert wire.path == "/v1/rerank"


def test_load_and_unload_are_decoded() -> None:
    order = decode_request("POST", "/models/load", {"model": "a"})
    assert isinstance(order, LoadRequest)
    assert (order.kind, order.model) == ("load", "a")
    with pytest.raises(BadRequest, match="model name is missing from the request"):
        decode_request("POST", "/models/unload", {})
    changing = {
        one.path.rstrip("/"): (one.scope, one.writes)
        for one in ADAPTER.operations
        if one.scope == "operate" and one.writes
    }
    assert changing.keys() == {"/models/load", "/models/unload", "/lora-adapters"}


@pytest.mark.parametrize(
    ("kind", "state", "message"), [("load", "loaded", "already"), ("unload", "failed", "not running")]
)
def test_loading_a_loaded_model_is_rejected(kind: str, state: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        ADAPTER.validate(decode_request("POST", f"/models/{kind}", {"model": "a"}), ModelCard(name="a", state=state))


def test_a_get_never_loads_a_model() -> None:
    idle, running = ModelCard(name="a"), ModelCard(name="a", state="loaded")
    for request, error in (
        (decode_request("GET", "/lora-adapters", query="model=a"), ModelUnavailable),
        (decode_request("POST", "/x", {"y": 1}), ModelUnavailable),
        (decode_request("GET", "/x"), NotFound),
        (decode_request("GET", "/x", query="model=a"), NotFound),
    ):
        assert ADAPTER.validate(request, running) is request
        with pytest.raises(error):
            ADAPTER.validate(request, idle)
    named = decode_request("POST", "/x", {"model": "a"})
    assert ADAPTER.validate(named, idle) is named


def test_an_unknown_path_goes_to_the_engine_of_the_model_in_its_body() -> None:
    body = b'{"model":"a","stream":true,"x":1}'
    request = decode_request("POST", "/v1/audio/new", body, query="y=2", content_type="application/json")
    assert isinstance(request, Passthrough)
    assert (request.model, request.output.stream) == ("a", True)
    wire = UPSTREAM.build(request, model="b", stream=True)
    assert (wire.path, wire.body) == ("/v1/audio/new?y=2", b'{"model":"b","stream":true,"x":1}')


def test_an_unknown_path_accepts_a_form_with_files() -> None:
    kind = "multipart/form-data; boundary=B"
    form = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--B--\r\n'
    request = decode_request("POST", "/v1/x", form, content_type=kind)
    wire = UPSTREAM.build(request, model="b", stream=True)
    assert (request.model, wire.content_type, wire.body) == ("a", kind, form.replace(b"\r\na\r\n", b"\r\nb\r\n"))


def test_other_content_types_are_forwarded_unread() -> None:
    request = decode_request("POST", "/v1/x", b"\x00model", content_type="application/octet-stream")
    wire = UPSTREAM.build(request, model="b", stream=True)
    assert (request.model, wire.body, wire.content_type) == (None, b"\x00model", "application/octet-stream")


@pytest.mark.parametrize(
    "path",
    [
        "/slots/0", "/x/slots/0", "/SLOTS/0", "/props/", "/v1/props", "/admin/x", "/ui/x", "/metrics/x", "/events/",
        "/api/x", "/cors-proxy/x", "/tools/x", "/v1/stream/x", "/v1/streams/x", "/prefix/v1/stream", "/v1/lora-adapters",
        "/x/models/load", "/sleep", "/v1/load_lora_adapter", "/flush_cache", "/v1/model/unload", "/healthz/", "/openapi.json/", "/x/version", "/", "//x", "/x//y", "/x/../slots", "/../x",
        "/./x", "/x/.", "/x%2e%2e/slots", "/x/%2e%2e/slots", "/%73lots/0", "/x%2fslots", "/x;y", "/x\\y", "/x\x00", "/.env",
        "/x y", "/x?y", "/\u00e9", "/" + "x" * 600,
    ],
)  # fmt: skip
def test_an_engines_management_routes_are_never_forwarded(path: str) -> None:
    for method in ("GET", "POST"):
        operation = ADAPTER.operations[-1]
        with pytest.raises(NotFound):
            ADAPTER.decode(operation, Incoming(method=method, path=path, body=b'{"model": "a"}'))


@pytest.mark.parametrize("path", ["/slots/0", "/sleep", "/v1/unload_lora_adapter", "/get_server_info", "/props"])
@pytest.mark.parametrize("prefix", ["", "/x"])
def test_nor_are_they_below_the_path_of_a_model(prefix: str, path: str) -> None:
    for operation in (one for one in ADAPTER.operations if one.path == "/upstream/{path:path}"):
        with pytest.raises(NotFound, match="not forwarded"):
            ADAPTER.decode(operation, Incoming(method="POST", path=f"/upstream/a{prefix}{path}", body=b"{}"))


@given(st.text("/.%\\;slots2eEfFX05", max_size=30))
def test_ambiguous_paths_are_not_forwarded(rest: str) -> None:
    try:
        request = decode_request("POST", "/" + rest)
    except NotFound:
        return
    segments = request.origin.path.strip("/").split("/")
    assert not {"", ".", "..", "slots"}.intersection(segments)
    assert "%" not in request.origin.path


@pytest.mark.parametrize("body", [b'{"model": 1}', b'{"model": "a", "model": "b"}', b'{"x"', b'"model"'])
def test_a_malformed_body_is_rejected_on_every_path(body: bytes) -> None:
    for path in ("/tokenize", "/unknown"):
        with pytest.raises(BadRequest):
            decode_request("POST", path, body, content_type="application/json")


def test_model_info_is_never_forwarded() -> None:
    info_operations = [one for one in ADAPTER.operations if one.model_info]
    assert {one.name for one in info_operations} == {"health", "props", "slots", "version"}
    for one in info_operations:
        assert isinstance(decode_request("GET", one.path, query="model=a&autoload=true"), ModelInfoRequest)
