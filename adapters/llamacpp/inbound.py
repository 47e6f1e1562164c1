"""llama.cpp's protocol as clients speak it: bytes to requests, probes and orders to answers. Answers are in `encoder.py`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hostler.adapters import presetting
from hostler.adapters.canonical import CompletionRequest, Control, Origin, Output, Passthrough, Probe, Request
from hostler.adapters.document import Document, check_size
from hostler.adapters.errors import BadRequest, GatewayError, ModelUnavailable, NotFound
from hostler.adapters.listing import Listing, ModelCard
from hostler.adapters.llamacpp import completion, other, server
from hostler.adapters.llamacpp.encoder import LlamaCppEncoder
from hostler.adapters.llamacpp.paths import COMPLETIONS, LOOK, OPERATIONS, UNKNOWN
from hostler.adapters.llamacpp.refusal import refusal
from hostler.adapters.llamacpp.upstream import is_object
from hostler.adapters.llamacpp.wire import WIRE
from hostler.adapters.naming import elsewhere
from hostler.adapters.openai.inbound import OpenAIAdapter
from hostler.adapters.protocol import Encoder, Incoming, Operation, WireResponse
from hostler.profiles.presets import Preset

_PROBES = frozenset(
    (
        *("health", "props", "slots", "version"),
        *("watch", "fetch", "set_props", "slot", "stream", "drop", "lookup", "tools", "proxy"),
    )
)
_READS = frozenset({"GET", "HEAD"})
# On these paths two protocols meet. Words that only OpenAI's have, and words that only llama-server's have.
_SHARED = {
    "/completions": Operation(name="completions", path="/v1/completions"),
    "/embeddings": Operation(name="embeddings", path="/v1/embeddings"),
}
_OPENAI_WORDS = frozenset(
    {"max_tokens", "best_of", "echo", "logprobs", "stream_options", "suffix", "user", "encoding_format", "dimensions"}
)
_NATIVE_WORDS = frozenset(
    {"n_predict", "n_probs", "cache_prompt", "id_slot", "return_tokens", "content", "response_fields"}
)
_RERANK = Operation(name="rerank", path="/v1/rerank")


class LlamaCppAdapter:
    """The adapter for llama.cpp's web UI, its tools, and everything written for `llama-server`."""

    def __init__(self) -> None:
        self._openai = OpenAIAdapter()

    @property
    def name(self) -> str:
        """The protocol's name."""
        return WIRE

    @property
    def operations(self) -> Sequence[Operation]:
        """What clients can ask. The last one takes every path that nobody else knows."""
        return OPERATIONS

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request. A model is named in the body or in the query."""
        name = operation.name
        if name in UNKNOWN:
            return other.decode(name, incoming)
        if name == "rerank":
            return self._openai.decode(_RERANK, incoming)
        origin = Origin(
            wire=WIRE,
            operation=name,
            body=incoming.body,
            method=incoming.method,
            path=operation.path.rstrip("/"),
            query=incoming.query,
            content_type="application/json",
        )
        named = elsewhere(incoming)
        if name in _PROBES:
            return Probe(origin=origin, kind=name, model=named)
        if name == "metrics":
            return Passthrough(origin=origin, model=named)
        if name in ("adapters", "scale"):
            # A list, so the model can stand in the query only.
            if is_object(incoming.body):
                Document(incoming.body)
            else:
                check_size(incoming.body)
            return Passthrough(origin=origin, model=named)
        body = Document(incoming.body)
        model = body.text("model") or named
        if name == "load" or name == "unload":
            if model is None:
                raise BadRequest("model name is missing from the request", param="model")
            return Control(origin=origin, kind="load" if name == "load" else "unload", model=model)
        shared = _SHARED.get(origin.path)
        if shared is not None and _is_openai(body, incoming):
            return self._openai.decode(shared, incoming)
        output = Output(stream=name in COMPLETIONS and body.flag("stream"))
        if name == "completion" and completion.plain(body.members):
            return CompletionRequest(origin=origin, model=model, output=output)
        return Passthrough(origin=origin, model=model, output=output)

    def expand(self, request: Request) -> Request:
        """The request with everything decoded that a backend of another protocol needs; most is the engine's alone."""
        if request.origin.wire != WIRE:
            return self._openai.expand(request)
        return completion.expand(request) if isinstance(request, CompletionRequest) else request

    def preset(self, request: Request, preset: Preset) -> Request:
        """The request as it is when it is asked of a model that was made of another one; its words are not templated."""
        if request.origin.wire != WIRE:
            return self._openai.preset(request, preset)
        if not isinstance(request, CompletionRequest):
            return request
        wanted = presetting.sampling(preset)
        body = presetting.with_defaults(request.origin.body, wanted, instead={"max_tokens": presetting.LIMITS})
        return msgspec.structs.replace(request, origin=msgspec.structs.replace(request.origin, body=body))

    def admit(self, request: Request, card: ModelCard) -> Request:
        """Refuses orders that are carried out already, and lets nothing load a model that did not name one to be asked."""
        running = card.state in ("loaded", "loading")
        if isinstance(request, Control):
            if request.kind == "load" and running:
                raise BadRequest("model is already running", param="model")
            if request.kind == "unload" and not running:
                raise BadRequest("model is not running", param="model")
            return request
        origin = request.origin
        if origin.wire != WIRE or running:
            return request
        if origin.operation == LOOK:
            raise NotFound(f"there is no {origin.method} {origin.path} here, and no model runs that could know it")
        if origin.operation in UNKNOWN and request.model is None:
            raise ModelUnavailable('no model is named and none is running; name one in "model", or load one')
        if origin.method in _READS:
            raise ModelUnavailable(f"model is not loaded: {card.name}", model=card.name)
        return request

    def answer(self, request: Request, listing: Listing) -> WireResponse:
        """What llama-server tells of itself."""
        if not isinstance(request, Probe) or request.kind not in _PROBES:
            raise NotFound("There is nothing like that to ask for.")
        return server.answer(request.kind, request.model, listing)

    def watches(self, request: Request) -> bool:
        """Whether the states of models are to be followed."""
        return isinstance(request, Probe) and request.kind == "watch"

    def news(self, before: Listing | None, now: Listing) -> bytes:
        """How the models are, then what becomes of them."""
        return server.news(before, now)

    def encoder(self, request: Request, *, id: str, created: int, progress: str) -> Encoder:  # noqa: A002
        """An encoder for one reply."""
        origin = request.origin
        if origin.wire != WIRE:
            return self._openai.encoder(request, id=id, created=created, progress=progress)
        return LlamaCppEncoder(request, progress=progress)

    def refuse(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete answer."""
        return refusal(error, operation)


def _is_openai(body: Document, incoming: Incoming) -> bool:
    """Whether OpenAI's form of an answer is wanted where llama-server has one of its own under the same path.

    OpenAI's own package says who it is. Others are told by their words; who names a model and an `input` is one of them.
    """
    if any(name.startswith("x-stainless-") for name in incoming.headers):
        return True
    names = body.members.keys()
    if names & _NATIVE_WORDS:
        return False
    return bool(names & _OPENAI_WORDS) or {"model", "input"} <= names
