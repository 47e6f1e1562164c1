"""Methods that Ollama's routes do not accept."""

from __future__ import annotations

import pytest
from fakes.ollama_harness import OllamaHarness

from hostler.adapters.base import Incoming
from hostler.adapters.errors import GatewayError

BLOB = "sha256:" + "a" * 64


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", "/api/ps", "GET"),
        ("HEAD", "/api/status", "GET"),
        ("GET", "/api/blobs/" + BLOB, "HEAD, POST"),
        ("DELETE", "/api/blobs/x", "HEAD, POST"),
    ],
)
def test_a_wrong_method_is_rejected_as_in_ollama(harness: OllamaHarness, method: str, path: str, allowed: str) -> None:
    operation = next(
        each
        for each in harness.adapter.operations
        if each.name == "wrong_method" and method in each.methods and each.path in (path, "/api/blobs/{digest}")
    )
    with pytest.raises(GatewayError) as raised:
        harness.adapter.decode(operation, Incoming(method=method, path=path))
    response = harness.adapter.error_response(raised.value, operation)
    assert (response.status, response.body, dict(response.headers)["Allow"]) == (
        405,
        b"405 method not allowed",
        allowed,
    )
