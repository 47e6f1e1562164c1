"""The progress of model operations in Ollama's protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.ollama_harness import OllamaHarness

from hostler.adapters.canonical import (
    Chunk,
    ProgressStep,
)
from hostler.adapters.errors import GatewayError, ModelNotFound


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def test_progress_is_streamed_line_by_line(harness: OllamaHarness) -> None:
    steps = (
        ProgressStep(step="looking"),
        ProgressStep(step="fetching", digest="ab" * 32, completed=0, total=7),
        ProgressStep(step="fetching", digest="ab" * 32, completed=7, total=7),
        ProgressStep(step="verifying"),
        ProgressStep(step="parsing"),
        ProgressStep(step="reusing", digest="cd" * 32),
        ProgressStep(step="adding", digest="ef" * 32),
        ProgressStep(step="writing"),
        ProgressStep(step="done"),
    )
    order = harness.decode("pull", {"model": "smol"})
    assert harness.lines(order, *(Chunk(step=step) for step in steps)) == [
        {"status": "pulling manifest"},
        {"status": "pulling abababababab", "digest": "sha256:" + "ab" * 32, "total": 7},
        {"status": "pulling abababababab", "digest": "sha256:" + "ab" * 32, "total": 7, "completed": 7},
        {"status": "verifying sha256 digest"},
        {"status": "parsing GGUF"},
        {"status": "using existing layer sha256:" + "cd" * 32},
        {"status": "creating new layer sha256:" + "ef" * 32},
        {"status": "writing manifest"},
        {"status": "success"},
    ]
    whole = harness.decode("pull", {"model": "smol", "stream": False})
    assert json.loads(harness.encode(whole, *(Chunk(step=step) for step in steps))) == {"status": "success"}
    encoder = harness.adapter.encoder(order, response_id="", created=0, progress="off")
    assert (encoder.media_type, encoder.streaming) == ("application/x-ndjson", True)


def test_an_operation_without_progress_has_an_empty_response(harness: OllamaHarness) -> None:
    assert harness.encode(harness.decode("copy", {"source": "smol", "destination": "x"})) == b""
    assert harness.encode(harness.decode("delete", {"model": "smol"})) == b""


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("pull", {"model": "nope"}, "pull model manifest: file does not exist"),
        ("create", {"model": "x", "from": "nope"}, "pull model manifest: file does not exist"),
    ],
)
def test_an_error_is_the_last_line(harness: OllamaHarness, name: str, body: Any, message: str) -> None:
    encoder = harness.adapter.encoder(harness.decode(name, body), response_id="", created=0, progress="off")
    error: GatewayError = ModelNotFound("no backend has it", model="nope")
    assert json.loads(encoder.error(error)) == {"error": message}
    refusal = harness.adapter.error_response(error, harness.operation(name))
    assert (refusal.status, json.loads(refusal.body)) == (500, {"error": message})
