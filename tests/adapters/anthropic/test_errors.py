"""Errors in Anthropic's form."""

from __future__ import annotations

import json

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.errors import (
    BackendRejected,
    BackendTimeout,
    BadRequest,
    Forbidden,
    GatewayError,
    MethodNotAllowed,
    ModelNotFound,
    ModelUnavailable,
    RequestTooLarge,
    TooManyRequests,
    Unauthenticated,
)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("x"), 400, "invalid_request_error"),
        (Unauthenticated("x"), 401, "authentication_error"),
        (Forbidden("x"), 403, "permission_error"),
        (ModelNotFound("x"), 404, "not_found_error"),
        (MethodNotAllowed("x"), 405, "invalid_request_error"),
        (RequestTooLarge("x"), 413, "request_too_large"),
        (TooManyRequests("x"), 429, "rate_limit_error"),
        (ModelUnavailable("x"), 503, "overloaded_error"),
        (ModelUnavailable("x", final=True), 503, "api_error"),
        (BackendTimeout("x"), 504, "timeout_error"),
        (GatewayError("x"), 500, "api_error"),
    ],
)
def test_each_error_has_its_status_and_type(
    adapter: AnthropicAdapter, error: GatewayError, status: int, kind: str
) -> None:
    response = adapter.error_response(error)
    assert response.status == status
    assert json.loads(response.body) == {"type": "error", "error": {"type": kind, "message": "x"}}


def test_errors_have_their_headers(adapter: AnthropicAdapter) -> None:
    assert adapter.error_response(TooManyRequests("x", retry_after_s=1.1)).headers == (("Retry-After", "2"),)
    assert adapter.error_response(Unauthenticated("x")).headers[1:] == (("WWW-Authenticate", "Bearer"),)
    assert adapter.error_response(MethodNotAllowed("x", allowed=("POST",))).headers[1:] == (("Allow", "POST"),)


def rejected(status: int, body: bytes = b'{"error":{"message":"theirs"}}', wire: str = "openai") -> BackendRejected:
    return BackendRejected("main refused", backend="main", wire=wire, backend_status=status, headers={}, body=body)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (rejected(400), 400, "theirs"),
        (rejected(422, b'{"error":"theirs"}'), 422, "theirs"),
        (rejected(404, b"<html>"), 404, "main refused"),
        (rejected(401), 502, "main refused"),
        (rejected(500), 502, "main refused: theirs"),
        (rejected(500, b'{"error":{"message":"no memory for the context"}}'), 502, "main refused"),
    ],
)
def test_an_engines_error_is_translated(
    adapter: AnthropicAdapter, error: BackendRejected, status: int, message: str
) -> None:
    response = adapter.error_response(error)
    assert (response.status, json.loads(response.body)["error"]["message"]) == (status, message)


def test_a_too_long_conversation_gets_the_message_that_clients_search_for(adapter: AnthropicAdapter) -> None:
    body = (
        b'{"error":{"code":400,"message":"request (4031 tokens) exceeds the available context size (2048 tokens)",'
        b'"type":"exceed_context_size_error","n_prompt_tokens":4031,"n_ctx":2048}}'
    )
    error = json.loads(adapter.error_response(rejected(400, body)).body)["error"]
    assert error == {"type": "invalid_request_error", "message": "prompt is too long: 4031 tokens > 2048 maximum"}


def test_anthropics_own_errors_are_passed_on(adapter: AnthropicAdapter) -> None:
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"theirs"},"request_id":"req_1"}'
    response = adapter.error_response(rejected(400, body, "anthropic"))
    assert (response.status, response.body) == (400, body)
