"""Embeddings for Ollama's clients from every kind of backend, and Ollama's for other clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.ollama_harness import OllamaHarness

from hostler.adapters.base import Incoming, Upstream
from hostler.adapters.canonical import Chunk, EmbedRequest, Request, ResponseHead
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream

RAW = [3.0, 4.0, 12.0]
UNIT = [3 / 13, 4 / 13, 12 / 13]
OPENAI = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": RAW}],
    "usage": {"prompt_tokens": 2},
}
OLLAMA = {"model": "there", "embeddings": [UNIT], "total_duration": 5, "load_duration": 1, "prompt_eval_count": 2}


def met(
    harness: OllamaHarness, request: Request, upstream: Upstream, response: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """The request to the backend, and the client's response."""
    sent = upstream.build(request, model="there", stream=False)
    body = json.dumps(response).encode()
    head = ResponseHead(media_type="application/json", length=len(body))
    parser = upstream.parser(request, fields=True)
    parser.start(head)
    chunks: list[Chunk] = [*parser.feed(body), *parser.finish()]
    return {"path": sent.path, **json.loads(sent.body)}, json.loads(harness.encode(request, *chunks, head=head))


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def embed(harness: OllamaHarness, **fields: Any) -> Request:
    return harness.decode("embed", {"model": "far", "input": "one", **fields})


def test_vectors_of_an_openai_backend_are_normalised(harness: OllamaHarness) -> None:
    sent, result = met(harness, embed(harness, truncate=False, options={"num_ctx": 9}), OpenAIUpstream(), OPENAI)
    assert sent == {"path": "/v1/embeddings", "model": "there", "input": ["one"], "encoding_format": "float"}
    assert (
        result["model"] == "far" and result["embeddings"] == [pytest.approx(UNIT)] and result["prompt_eval_count"] == 2
    )


def test_strict_servers_get_no_llama_parameters(harness: OllamaHarness) -> None:
    request = harness.decode("embeddings", {"model": "far", "prompt": "one"})
    sent, result = met(harness, request, OpenAIUpstream(), OPENAI)
    assert "embd_normalize" not in sent and result == {"embedding": RAW}
    assert met(harness, request, LlamaCppUpstream(), OPENAI)[0]["embd_normalize"] == -1


def test_fewer_dimensions_are_requested_and_truncated_if_necessary(harness: OllamaHarness) -> None:
    sent, result = met(harness, embed(harness, dimensions=2), OpenAIUpstream(), OPENAI)
    assert sent["dimensions"] == 2 and result["embeddings"] == [pytest.approx([0.6, 0.8])]


def test_an_ollama_backend_gets_the_whole_request(harness: OllamaHarness) -> None:
    content = {"truncate": False, "dimensions": 3, "keep_alive": "5m", "options": {"num_ctx": 9}}
    sent, result = met(harness, embed(harness, **content), OllamaUpstream(), OLLAMA)
    assert sent == {"path": "/api/embed", "model": "there", "input": "one", **content}
    assert result == {**OLLAMA, "model": "far"}
    request = harness.decode("embeddings", {"model": "far", "prompt": "one"})
    sent, result = met(harness, request, OllamaUpstream(), {"embedding": RAW})
    assert (sent["path"], sent["prompt"], result) == ("/api/embeddings", "one", {"embedding": RAW})


def test_an_ollama_backend_serves_openai_clients(harness: OllamaHarness) -> None:
    adapter = OpenAIAdapter()
    operation = next(each for each in adapter.operations if each.path == "/v1/embeddings")
    body = json.dumps({"model": "far", "input": ["one"], "dimensions": 3}).encode()
    request = adapter.expand(adapter.decode(operation, Incoming(method="POST", path=operation.path, body=body)))
    assert isinstance(request, EmbedRequest)
    sent = OllamaUpstream().build(request, model="there", stream=False)
    assert (sent.path, json.loads(sent.body)) == ("/api/embed", {"model": "there", "input": ["one"], "dimensions": 3})
    response = json.dumps(OLLAMA).encode()
    head = ResponseHead(media_type="application/json", length=len(response))
    parser = OllamaUpstream().parser(request, fields=True)
    parser.start(head)
    encoder = adapter.encoder(request, response_id="x", created=1, progress="off")
    encoder.start(head)
    encoded = [encoder.encode(chunk) for chunk in [*parser.feed(response), *parser.finish()]]
    result = json.loads(b"".join([*encoded, encoder.finish()]))
    assert result["data"] == [{"object": "embedding", "index": 0, "embedding": UNIT}]
    assert result["usage"]["prompt_tokens"] == 2
