"""Native completions that other backends can serve, and those that they cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import (
    Passthrough,
    Request,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.openai.upstream import OpenAIUpstream

ADAPTER = LlamaCppAdapter()


UPSTREAM = LlamaCppUpstream()


def decode_request(method: str, path: str, body: Any = b"", *, query: str = "", **headers: str) -> Request:
    """The decoded request; unknown paths match the catch-all."""
    known = [one for one in ADAPTER.operations if method in one.methods]
    operation = next((one for one in known if one.path == path), known[-1])
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ADAPTER.decode(operation, Incoming(method=method, path=path, body=sent, query=query, headers=named))


def sent(request: Request, *, model: str = "there", stream: bool = True) -> Any:
    """The JSON that an engine gets."""
    return json.loads(UPSTREAM.build(request, model=model, stream=stream).body)


def test_a_plain_completion_can_be_served_by_any_backend() -> None:
    fields = {
        "prompt": "x",
        "n_predict": 4,
        "seed": -1,
        "stop": ["y"],
        "temperature": 0,
        "json_schema": {},
        "id_slot": 0,
    }
    request = ADAPTER.expand(decode_request("POST", "/completion", fields))
    body = json.loads(OpenAIUpstream().build(request, model="cloud", stream=True).body)
    assert body.pop("stream_options") == {"include_usage": True}
    assert body == {
        "model": "cloud", "prompt": "x", "max_tokens": 4, "stop": ["y"], "temperature": 0.0, "json_schema": {},
        "stream": True,
    }  # fmt: skip


def test_a_completion_that_only_an_engine_can_serve_is_not_translated() -> None:
    for fields in (
        {"prompt": [1, 2]},
        {"prompt": ["x", "y"]},
        {"prompt": "x", "n": 2},
        {"prompt": {"prompt_string": "x"}},
    ):
        assert isinstance(decode_request("POST", "/completion", fields), Passthrough)
    with pytest.raises(BadRequest, match="temperature"):
        ADAPTER.expand(decode_request("POST", "/completion", {"prompt": "x", "temperature": "hot"}))
