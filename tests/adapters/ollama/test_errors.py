"""Errors in Ollama's form: a string under `error`, with Ollama's messages and statuses."""

from __future__ import annotations

import json

import pytest
from fakes.ollama_harness import OllamaHarness

from hostler.adapters.errors import (
    BackendBroken,
    BackendRejected,
    BackendUnavailable,
    GatewayError,
    MethodNotAllowed,
    ModelNotFound,
    ModelUnavailable,
    NotFound,
    ShuttingDown,
    TooManyRequests,
    Unauthenticated,
    WaitTimeout,
)
from hostler.adapters.ollama.errors import error_response

TOO_LARGE = b'{"error":{"code":500,"message":"input (600 tokens) is too large to process. increase the physical batch size (current batch size: 512)"}}'


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def rejected(status: int, body: bytes, wire: str = "openai") -> BackendRejected:
    return BackendRejected(
        "main-pc says no", backend="main-pc", wire=wire, backend_status=status, headers={}, body=body
    )


def unknown(name: str) -> ModelNotFound:
    return ModelNotFound("2 models are: a, b", model=name)


@pytest.mark.parametrize(
    ("error", "operation", "status", "message"),
    [
        (unknown("X"), "chat", 404, "model 'X' not found"),
        (unknown("x"), "generate", 404, "model 'x' not found"),
        (unknown("X"), "show", 404, "model 'X:latest' not found"),
        (unknown("x"), "embed", 404, 'model "x" not found, try pulling it first'),
        (unknown("x"), "embeddings", 404, 'model "x" not found, try pulling it first'),
        (unknown("x"), "copy", 404, 'model "x" not found'),
        (unknown("gpt:cloud"), "chat", 403, "ollama cloud is disabled: remote model is unavailable"),
        (unknown("gpt:120b-cloud"), "chat", 403, "ollama cloud is disabled: remote model is unavailable"),
        (TooManyRequests("10 wait", model="x"), "chat", 503, "server busy, please try again.  maximum pending requests exceeded"),
        (TooManyRequests("too many wrong keys"), None, 429, "too many wrong keys"),
        (WaitTimeout("120 s"), "chat", 503, "120 s"),
        (ShuttingDown("bye"), "chat", 503, "bye"),
        (ModelUnavailable("out of memory"), "chat", 500, "out of memory"),
        (BackendBroken("it died"), "chat", 500, "it died"),
        (BackendUnavailable("nobody there"), "chat", 500, "nobody there"),
        (Unauthenticated("a key is needed"), "chat", 401, "a key is needed"),
        (rejected(400, b'{"error":{"message":"bad grammar","code":400}}'), "chat", 400, "bad grammar"),
        (rejected(404, b'{"error":"model gone"}', "ollama"), "chat", 404, "model gone"),
        (rejected(500, b"<html>"), "chat", 500, "main-pc says no"),
        (rejected(401, b'{"error":{"message":"sk-secret is wrong"}}'), "chat", 500, "main-pc says no"),
        (rejected(501, b'{"error":{"message":"This server does not support embeddings."}}'), "embed", 501, "This server does not support embeddings."),
        (rejected(501, b'{"error":{"message":"This server does not support embeddings."}}'), "embeddings", 500, "This server does not support embeddings."),
        (rejected(500, TOO_LARGE), "embed", 400, "the input length exceeds the context length"),
        (GatewayError("oops\x00\n"), "chat", 500, "oops?\n"),
    ],
)  # fmt: skip
def test_errors_have_ollamas_message_and_status(
    harness: OllamaHarness, error: GatewayError, operation: str | None, status: int, message: str
) -> None:
    response = harness.adapter.error_response(error, harness.operation(operation) if operation else None)
    assert (response.status, json.loads(response.body)) == (status, {"error": message})
    assert response.media_type == "application/json; charset=utf-8"


def test_a_full_queue_has_a_retry_after(harness: OllamaHarness) -> None:
    response = harness.adapter.error_response(
        TooManyRequests("10 wait", model="x", retry_after_s=2.2), harness.operation("chat")
    )
    assert ("Retry-After", "3") in response.headers


def test_unknown_paths_and_wrong_methods_are_plain_text(harness: OllamaHarness) -> None:
    lost = harness.adapter.error_response(NotFound("there is no GET /api/x here"))
    assert (lost.status, lost.media_type, lost.body) == (404, "text/plain; charset=utf-8", b"404 page not found")
    wrong = harness.adapter.error_response(MethodNotAllowed("no", allowed=("GET", "HEAD")))
    assert (wrong.status, wrong.body, wrong.headers[1:]) == (405, b"405 method not allowed", (("Allow", "GET, HEAD"),))


def test_a_final_429_does_not_ask_to_try_again() -> None:
    error = TooManyRequests("all backends for x are busy", retry_after_s=9000.0, model="x")
    error.final = True
    response = error_response(error)
    assert (response.status, json.loads(response.body)["error"]) == (429, "all backends for x are busy")
    assert ("x-should-retry", "false") in response.headers
