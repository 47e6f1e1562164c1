"""The OpenAI adapter, its upstream side, and recorded answers of real servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import Chunk, Request, ResponseHead
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.encoder import OpenAIEncoder
from hostler.adapters.openai.response_parser import OpenAIParser
from hostler.adapters.openai.upstream import OpenAIUpstream

TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
STREAM = ResponseHead(media_type="text/event-stream")

DecodeRequest = Callable[..., Request]


@pytest.fixture
def adapter() -> OpenAIAdapter:
    return OpenAIAdapter()


@pytest.fixture
def upstream() -> OpenAIUpstream:
    return OpenAIUpstream()


@pytest.fixture
def transcript() -> Callable[[str], bytes]:
    return lambda name: (TRANSCRIPTS / name).read_bytes()


@pytest.fixture
def decode_request(adapter: OpenAIAdapter) -> DecodeRequest:
    """Decodes a request: `decode_request("/v1/chat/completions", {...})`, or with raw bytes instead of a dict."""

    def decode(path: str, body: dict[str, Any] | bytes = b"", **more: Any) -> Request:
        operation = next(found for found in adapter.operations if found.path == path)
        method = operation.methods[0]
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return adapter.decode(operation, Incoming(method=method, path=path, body=sent, **more))

    return decode


@pytest.fixture
def chat(decode_request: DecodeRequest) -> Callable[..., Request]:
    """A chat request with a model, one message and these fields."""

    def decode(**fields: Any) -> Request:
        body = {"model": "a", "messages": [{"role": "user", "content": "Say hi"}], **fields}
        return decode_request("/v1/chat/completions", body)

    return decode


@pytest.fixture
def start_encoder(adapter: OpenAIAdapter) -> Callable[..., OpenAIEncoder]:
    """An encoder for a request that a backend has started to answer."""

    def make(request: Request, head: ResponseHead = STREAM, *, progress: str = "thinking") -> OpenAIEncoder:
        encoder = adapter.encoder(request, response_id="chatcmpl-1", created=1700000000, progress=progress)
        encoder.start(head)
        return encoder

    return make


@pytest.fixture
def parse() -> Callable[..., list[Chunk]]:
    """All chunks of a response in these segments."""

    def run(
        segments: Iterable[bytes], *, head: ResponseHead = STREAM, operation: str = "chat", **options: Any
    ) -> list[Chunk]:
        parser = OpenAIParser(operation, **options)
        parser.start(head)
        chunks: list[Chunk] = []
        for segment in segments:
            chunks.extend(parser.feed(segment))
        chunks.extend(parser.finish())
        return chunks

    return run
