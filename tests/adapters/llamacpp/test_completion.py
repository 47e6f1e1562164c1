"""Native completions that other backends can serve, and those that they cannot."""

from __future__ import annotations

import json

import pytest
from fakes.llamacpp_requests import ADAPTER, decode_request

from hostler.adapters.canonical import (
    Passthrough,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.openai.upstream import OpenAIUpstream


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
