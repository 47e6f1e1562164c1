"""The Ollama adapter, its requests and its responses for tests: bytes go in, requests, responses or errors come out."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from hostler.adapters.base import Incoming, Operation, Timing, WireResponse
from hostler.adapters.canonical import Chunk, ModelInfoRequest, Request, ResponseHead
from hostler.adapters.errors import GatewayError
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.profiles.schema import ModelFacts

FACTS = ModelFacts(
    architecture="llama",
    parameters=134515008,
    quantization="Q4_1",
    training_context=8192,
    embedding_length=576,
    chat_template="{{ messages }}",
    capabilities=("completion",),
    metadata={
        "general.architecture": "llama",
        "general.name": "Smol",
        "llama.context_length": 8192,
        "llama.rope.scaling.original_context_length": 2048,
        "llama.attention.layer_norm_rms_epsilon": 1e-05,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.tokens": None,
    },
)
SMOL = ModelCard(
    name="smol",
    aliases=("tiny",),
    state="loaded",
    context=4096,
    modified_at=1_700_000_000.25,
    size=98362745,
    digest="ab" * 32,
    facts=FACTS,
    memory_bytes=150_000_000,
    expires_at=1_700_000_300.0,
)
ABLE = msgspec.structs.replace(
    SMOL,
    name="Able",
    aliases=(),
    state="unloaded",
    modified_at=1_700_000_001.0,
    digest="cd" * 32,
    expires_at=None,
    capabilities=("completion", "vision", "tools", "thinking", "insert"),
)
REMOTE = ModelCard(name="org/sub/far@v1", state="loaded", context=32768)
VECTORS = msgspec.structs.replace(
    SMOL,
    name="vectors",
    aliases=(),
    state="loading",
    digest="ef" * 32,
    expires_at=None,
    facts=msgspec.structs.replace(FACTS, chat_template=""),
    capabilities=("embedding",),
)
CARDS = (SMOL, ABLE, REMOTE, VECTORS)
LISTING = ModelList(
    cards=CARDS, index={name: card for card in CARDS for name in (card.name, *card.aliases)}, active="smol"
)
HI = [{"role": "user", "content": "hi"}]


class OllamaHarness:
    """The adapter with a list of models. Bodies are bytes, or values to encode as JSON."""

    def __init__(self, listing: ModelList = LISTING) -> None:
        self.adapter = OllamaAdapter()
        self.listing = listing

    def operation(self, name: str) -> Operation:
        return next(operation for operation in self.adapter.operations if operation.name == name)

    def decode(self, name: str, body: Any = b"", **more: Any) -> Request:
        """The request, validated for its model. Raises the adapter's errors."""
        operation = self.operation(name)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = self.adapter.decode(
            operation, Incoming(method=operation.methods[0], path=operation.path, body=sent, **more)
        )
        card = self.listing.resolve(request.model or "")
        return (
            request if card is None or isinstance(request, ModelInfoRequest) else self.adapter.validate(request, card)
        )

    def respond(self, name: str, body: Any = b"", **more: Any) -> WireResponse:
        """The response to a model info request, or the error."""
        try:
            request = self.decode(name, body, **more)
            return self.adapter.model_info(request, self.listing)
        except GatewayError as error:
            return self.adapter.error_response(error, self.operation(name))

    def respond_json(self, name: str, body: Any = b"", **more: Any) -> Any:
        """The JSON of `respond`."""
        return json.loads(self.respond(name, body, **more).body)

    def chat(self, **fields: Any) -> Request:
        return self.decode("chat", {"model": "smol", "messages": HI, **fields})

    def encode(
        self, request: Request, *chunks: Chunk, head: ResponseHead | None = None, timing: Timing | None = None
    ) -> bytes:
        """The client's response for these chunks."""
        encoder = self.adapter.encoder(request, response_id="req-1", created=1_700_000_000, progress="thinking")
        encoder.start(head or ResponseHead(media_type="text/event-stream"))
        encoded = [encoder.encode(chunk) for chunk in chunks]
        if timing is not None:
            encoder.set_timing(timing)
        return b"".join([*encoded, encoder.finish()])

    def lines(self, request: Request, *chunks: Chunk, **more: Any) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.encode(request, *chunks, **more).splitlines()]
