"""Vectors for Ollama's clients from every kind of backend that has them, and Ollama's vectors for other clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.ollama_desk import Desk

from hostler.adapters.base import Incoming, Upstream
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.types import Chunk, EmbedRequest, Request, ResponseHead

RAW = [3.0, 4.0, 12.0]
UNIT = [3 / 13, 4 / 13, 12 / 13]
OPENAI = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": RAW}],
    "usage": {"prompt_tokens": 2},
}
OLLAMA = {"model": "there", "embeddings": [UNIT], "total_duration": 5, "load_duration": 1, "prompt_eval_count": 2}


def met(desk: Desk, request: Request, upstream: Upstream, answer: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What a backend is sent, and what the client gets for its answer."""
    sent = upstream.build(request, model="there", stream=False)
    body = json.dumps(answer).encode()
    head = ResponseHead(media_type="application/json", length=len(body))
    parser = upstream.parser(request, fields=True)
    parser.start(head)
    chunks: list[Chunk] = [*parser.feed(body), *parser.finish()]
    return {"path": sent.path, **json.loads(sent.body)}, json.loads(desk.answer(request, *chunks, head=head))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def embed(desk: Desk, **fields: Any) -> Request:
    return desk.decode("embed", {"model": "far", "input": "one", **fields})


def test_vectors_of_an_openai_backend_are_normalised(desk: Desk) -> None:
    sent, told = met(desk, embed(desk, truncate=False, options={"num_ctx": 9}), OpenAIUpstream(), OPENAI)
    assert sent == {"path": "/v1/embeddings", "model": "there", "input": ["one"], "encoding_format": "float"}
    assert told["model"] == "far" and told["embeddings"] == [pytest.approx(UNIT)] and told["prompt_eval_count"] == 2


def test_strict_servers_get_no_llama_parameters(desk: Desk) -> None:
    request = desk.decode("embeddings", {"model": "far", "prompt": "one"})
    sent, told = met(desk, request, OpenAIUpstream(), OPENAI)
    assert "embd_normalize" not in sent and told == {"embedding": RAW}
    assert met(desk, request, LlamaCppUpstream(), OPENAI)[0]["embd_normalize"] == -1


def test_fewer_dimensions_are_requested_and_truncated_if_necessary(desk: Desk) -> None:
    sent, told = met(desk, embed(desk, dimensions=2), OpenAIUpstream(), OPENAI)
    assert sent["dimensions"] == 2 and told["embeddings"] == [pytest.approx([0.6, 0.8])]


def test_an_ollama_backend_gets_the_whole_request(desk: Desk) -> None:
    said = {"truncate": False, "dimensions": 3, "keep_alive": "5m", "options": {"num_ctx": 9}}
    sent, told = met(desk, embed(desk, **said), OllamaUpstream(), OLLAMA)
    assert sent == {"path": "/api/embed", "model": "there", "input": "one", **said}
    assert told == {**OLLAMA, "model": "far"}
    request = desk.decode("embeddings", {"model": "far", "prompt": "one"})
    sent, told = met(desk, request, OllamaUpstream(), {"embedding": RAW})
    assert (sent["path"], sent["prompt"], told) == ("/api/embeddings", "one", {"embedding": RAW})


def test_an_ollama_backend_serves_openai_clients(desk: Desk) -> None:
    adapter = OpenAIAdapter()
    operation = next(each for each in adapter.operations if each.path == "/v1/embeddings")
    body = json.dumps({"model": "far", "input": ["one"], "dimensions": 3}).encode()
    request = adapter.expand(adapter.decode(operation, Incoming(method="POST", path=operation.path, body=body)))
    assert isinstance(request, EmbedRequest)
    sent = OllamaUpstream().build(request, model="there", stream=False)
    assert (sent.path, json.loads(sent.body)) == ("/api/embed", {"model": "there", "input": ["one"], "dimensions": 3})
    answer = json.dumps(OLLAMA).encode()
    head = ResponseHead(media_type="application/json", length=len(answer))
    parser = OllamaUpstream().parser(request, fields=True)
    parser.start(head)
    encoder = adapter.encoder(request, response_id="x", created=1, progress="off")
    encoder.start(head)
    written = [encoder.encode(chunk) for chunk in [*parser.feed(answer), *parser.finish()]]
    told = json.loads(b"".join([*written, encoder.finish()]))
    assert told["data"] == [{"object": "embedding", "index": 0, "embedding": UNIT}]
    assert told["usage"]["prompt_tokens"] == 2
