"""Whether a target can serve a request at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.requests import OPENAI, target

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.base import Incoming
from hostler.adapters.canonical import ChatRequest, Origin, Request
from hostler.adapters.errors import BackendRejected, BadRequest
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.gateway.backends.chain_errors import FailedHop
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.suitability import another_may_accept, fits_better_later, has_no_room, known_inability

OLLAMA, ANTHROPIC = OllamaAdapter(), AnthropicAdapter()
LONG = "many words, " * 4000
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def openai(path: str = "/v1/chat/completions", **body: Any) -> Request:
    operation = next(each for each in OPENAI.operations if each.path == path)
    return OPENAI.decode(
        operation, Incoming(method="POST", path=path, body=json.dumps({"model": "m", **body}).encode())
    )


def chat(content: Any = "Hello", **more: Any) -> Request:
    return openai(messages=[{"role": "user", "content": content}], **more)


def test_a_request_is_refused_for_what_the_model_certainly_cannot_do() -> None:
    lacking = target("pc", lacks=frozenset({"tools", "vision"}))
    reason, error = known_inability(chat(tools=[TOOL]), lacking, OPENAI, "alias") or ("", None)
    assert reason == "unsupported"
    assert isinstance(error, BadRequest)
    assert error.message == "alias does not support tools; use another model"
    assert known_inability(chat(), lacking, OPENAI, None) is None
    assert known_inability(chat(tools=[TOOL]), target("pc"), OPENAI, None) is None


def test_a_prompt_that_certainly_does_not_fit_is_refused_in_the_engines_form() -> None:
    reason, error = known_inability(chat(LONG), target("pc", context=512), OPENAI, None) or ("", None)
    assert reason == "too_long"
    assert isinstance(error, BackendRejected)
    assert json.loads(error.body)["error"]["type"] == "exceed_context_size_error"
    assert OPENAI.error_response(error).status == 400
    body = json.loads(ANTHROPIC.error_response(error).body)
    assert body["error"]["message"] == "prompt is too long: 6000 tokens > 512 maximum"


@pytest.mark.parametrize(
    "content",
    [
        "x" * 100_000,
        " " * 100_000,
        "-=" * 200,
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A7" * 50_000}}],
    ],
)
def test_what_may_take_few_tokens_is_left_to_the_engine(content: Any) -> None:
    assert known_inability(chat(content), target("pc", context=512), OPENAI, None) is None


def test_each_input_of_an_embedding_must_fit_by_itself() -> None:
    small = target("pc", context=512)
    assert known_inability(openai("/v1/embeddings", input=["a few words"] * 4000), small, OPENAI, None) is None
    assert known_inability(openai("/v1/embeddings", input=["a", LONG]), small, OPENAI, None) is not None


@pytest.mark.parametrize(("truncate", "refused"), [(None, False), (True, False), (False, True)])
def test_what_ollama_truncates_is_not_refused(truncate: bool | None, refused: bool) -> None:
    operation = next(each for each in OLLAMA.operations if each.path == "/api/embed")
    body = {"model": "m", "input": LONG} | ({} if truncate is None else {"truncate": truncate})
    request = OLLAMA.decode(operation, Incoming(method="POST", path="/api/embed", body=json.dumps(body).encode()))
    assert (known_inability(request, target("pc", context=512), OLLAMA, None) is not None) is refused


def test_a_longer_context_later_is_preferred() -> None:
    request = ChatRequest(origin=Origin(wire="openai", operation="chat", body=LONG.encode()))
    small, large, unknown = target("a", context=512), target("b", context=131072), target("c")
    assert fits_better_later(request, small, (large,))
    assert fits_better_later(request, small, (unknown,))
    assert not fits_better_later(request, small, ())
    assert not fits_better_later(request, large, (unknown,))


@pytest.mark.parametrize(("context", "no_room"), [(512, True), (100, True), (513, False), (0, False)])
def test_a_hop_without_room_for_what_was_too_long_elsewhere_is_skipped(context: int, no_room: bool) -> None:
    body = json.dumps({"error": {"type": "exceed_context_size_error", "message": "x"}}).encode()
    error = BackendRejected("x", backend="a", wire="openai", backend_status=400, headers={}, body=body)
    hop = Hop(name="a", breakers=CircuitBreakers(BreakerRules(), lambda: 0.0))
    failed = FailedHop(hop=hop, reason="rejected", error=error, context=512)
    assert has_no_room(target("b", context=context), [failed]) is no_room
    other = FailedHop(hop=hop, reason="unreachable", error=BadRequest("x"), context=512)
    assert not has_no_room(target("b", context=1), [other])


@pytest.mark.parametrize(
    ("status", "body", "accepted"),
    [
        (400, {"error": {"code": "context_length_exceeded", "message": "x"}}, True),
        (404, {"error": "no such model"}, True),
        (500, {"error": "Compute error."}, True),
        (400, {"error": "temperature must be a number"}, False),
    ],
)
def test_another_target_may_accept_some_rejections(status: int, body: Any, accepted: bool) -> None:
    error = BackendRejected(
        "x", backend="a", wire="openai", backend_status=status, headers={}, body=json.dumps(body).encode(),
        request_fault=status == 500,
    )  # fmt: skip
    small, large = target("a", context=512), target("b", context=4096)
    assert another_may_accept(error, small, (large,)) is accepted
    assert another_may_accept(error, small, ()) is (status == 500)
    assert another_may_accept(BadRequest("this protocol has no such request"), small, ())
