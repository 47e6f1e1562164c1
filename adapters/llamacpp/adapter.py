"""llama.cpp's protocol as clients speak it: bytes to requests, probes and orders to answers. Answers are in `encoder.py`."""

from __future__ import annotations

import re

import msgspec

from hostler.adapters import multipart, presets
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.errors import BadRequest, GatewayError, MethodNotAllowed, ModelUnavailable, NotFound
from hostler.adapters.json_body import JsonBody, check_size
from hostler.adapters.llamacpp import completion, server
from hostler.adapters.llamacpp.encoder import LlamaCppEncoder
from hostler.adapters.llamacpp.errors import error_response
from hostler.adapters.llamacpp.operations import COMPLETIONS, LOOK, OPERATIONS, UNKNOWN
from hostler.adapters.llamacpp.schema import WIRE
from hostler.adapters.llamacpp.upstream import is_object
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.request_model import model_outside_body
from hostler.adapters.types import CompletionRequest, Control, ModelInfoRequest, Origin, Output, Passthrough, Request
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


class LlamaCppAdapter(Adapter):
    """The adapter for llama.cpp's web UI, its tools, and everything written for `llama-server`."""

    name = WIRE
    operations = OPERATIONS

    def __init__(self) -> None:
        self._openai = OpenAIAdapter()

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request. A model is named in the body or in the query."""
        name = operation.name
        if name in UNKNOWN:
            return _decode_unknown(self.origin(operation, incoming), incoming)
        if name == "rerank":
            return self._openai.decode(_RERANK, incoming)
        # JSON whatever the client calls it, on the path as the engine knows it.
        origin = self.origin(operation, incoming, path=operation.path.rstrip("/"), content_type="application/json")
        named = model_outside_body(incoming)
        if name in _PROBES:
            return ModelInfoRequest(origin=origin, kind=name, model=named)
        if name == "metrics":
            return Passthrough(origin=origin, model=named)
        if name in ("adapters", "scale"):
            # A list, so the model can stand in the query only.
            if is_object(incoming.body):
                JsonBody(incoming.body)
            else:
                check_size(incoming.body)
            return Passthrough(origin=origin, model=named)
        body = JsonBody(incoming.body)
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

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        """The request as it is when it is asked of a model that was made of another one; its words are not templated."""
        if request.origin.wire != WIRE:
            return self._openai.apply_preset(request, preset)
        if not isinstance(request, CompletionRequest):
            return request
        wanted = presets.preset_sampling(preset)
        body = presets.with_defaults(request.origin.body, wanted, aliases={"max_tokens": presets.MAX_TOKENS_NAMES})
        return msgspec.structs.replace(request, origin=msgspec.structs.replace(request.origin, body=body))

    def validate(self, request: Request, card: ModelCard) -> Request:
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

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        """What llama-server tells of itself."""
        if request.kind not in _PROBES:
            raise NotFound("There is nothing like that to ask for.")
        return server.answer(request.kind, request.model, listing)

    def is_subscription(self, request: ModelInfoRequest) -> bool:
        """Whether the states of models are to be followed."""
        return request.kind == "watch"

    def change_events(self, before: ModelList | None, now: ModelList) -> bytes:
        """How the models are, then what becomes of them."""
        return server.news(before, now)

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        """An encoder for one reply."""
        origin = request.origin
        if origin.wire != WIRE:
            return self._openai.encoder(request, response_id=response_id, created=created, progress=progress)
        return LlamaCppEncoder(request, progress=progress)

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete answer."""
        return error_response(error, operation)


def _is_openai(body: JsonBody, incoming: Incoming) -> bool:
    """Whether OpenAI's form of an answer is wanted where llama-server has one of its own under the same path.

    OpenAI's own package says who it is. Others are told by their words; who names a model and an `input` is one of them.
    """
    if any(name.startswith("x-stainless-") for name in incoming.headers):
        return True
    names = body.members.keys()
    if names & _NATIVE_WORDS:
        return False
    return bool(names & _OPENAI_WORDS) or {"model", "input"} <= names


_FORM = "multipart/form-data"
_MAX_PATH = 512

# Only plain paths: whatever two servers could read as two different ones (`..`, `//`, `%2e`, `;`, backslashes) is none.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._~:@+-]*)+/?")

# The gateway's own surface, and what on an engine is not a question to a model: its state, its files, its neighbours.
# Looked for anywhere in a path, since engines can be told to serve below a prefix.
_NOT_FORWARDED = frozenset(
    (
        *(
            "admin",
            "api",
            "cors-proxy",
            "docs",
            "events",
            "health",
            "healthz",
            "lora-adapters",
            "metrics",
            "openapi.json",
        ),
        *("models", "props", "readyz", "redoc", "slots", "stream", "streams", "tools", "ui", "version"),
    )
)


def _decode_unknown(origin: Origin, incoming: Incoming) -> Passthrough:
    """The request as it goes to the engine. Raises `NotFound` for paths that are nobody's or not an engine's business."""
    _check(incoming)
    try:
        model, stream = _asked(incoming.body, origin.content_type)
        model = model or model_outside_body(incoming)
    except BadRequest as error:
        raise BadRequest(error.message) from None
    return Passthrough(origin=origin, model=model, output=Output(stream=stream))


def _check(incoming: Incoming) -> None:
    path = incoming.path
    if len(path) <= _MAX_PATH and _PLAIN.fullmatch(path):
        segments = path.lower().strip("/").split("/")
        if segments[0] == "models" or segments[:2] == ["v1", "models"]:
            raise MethodNotAllowed(f"{path[:200]} takes GET, not {incoming.method}", allowed=("GET", "HEAD"))
        if not _NOT_FORWARDED.intersection(segments):
            return
    raise NotFound(f"there is no {incoming.method} {path[:200]} here")


def _asked(body: bytes, content_type: str) -> tuple[str | None, bool]:
    """The model that a body names, and whether it asks for a stream."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _FORM:
        return multipart.field(body, content_type, "model"), multipart.field(body, content_type, "stream") == "true"
    start = body.lstrip(b" \t\r\n")[:1]
    if start == b"{" or (start and start != b"[" and kind == "application/json"):
        document = JsonBody(body)
        return document.text("model"), document.flag("stream")
    return None, False
