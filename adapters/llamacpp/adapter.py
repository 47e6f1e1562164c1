"""llama.cpp's protocol as clients speak it. Responses are written in `encoder.py`, model info in `models.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

import msgspec

from hostler.adapters import multipart, presets
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.canonical import (
    CompletionRequest,
    LoadRequest,
    ModelInfoRequest,
    Origin,
    Output,
    Passthrough,
    Request,
    StoredRequest,
    WebSocketRequest,
)
from hostler.adapters.engine_state import is_engine_state
from hostler.adapters.errors import (
    BadRequest,
    GatewayError,
    MethodNotAllowed,
    ModelUnavailable,
    NotFound,
    UpgradeRequired,
)
from hostler.adapters.json_body import JsonBody, check_size
from hostler.adapters.llamacpp import completion, models, streams
from hostler.adapters.llamacpp.encoder import LlamaCppEncoder
from hostler.adapters.llamacpp.errors import error_response
from hostler.adapters.llamacpp.operations import (
    ANSWER_MEMBERS,
    COMPLETIONS,
    OPERATIONS,
    OTHER_GET,
    UNKNOWN,
    UPSTREAM,
    WEBSOCKET,
)
from hostler.adapters.llamacpp.schema import WIRE
from hostler.adapters.llamacpp.upstream import is_object
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.requested_model import model_outside_body
from hostler.adapters.stored_response import StreamInfo
from hostler.profiles.presets import Preset

_MODEL_INFO = frozenset(
    (
        *("health", "props", "slots", "version"),
        *("watch", "download", "set_props", "slot", "tools", "proxy"),
    )
)
_READS = frozenset({"GET", "HEAD"})
_RERANK = Operation(name="rerank", path="/v1/rerank")

# Paths that OpenAI's protocol has too, and the fields that only one of the two has.
_SHARED = {
    "/completions": Operation(name="completions", path="/v1/completions"),
    "/embeddings": Operation(name="embeddings", path="/v1/embeddings"),
}
_OPENAI_FIELDS = frozenset(
    {"max_tokens", "best_of", "echo", "logprobs", "stream_options", "suffix", "user", "encoding_format", "dimensions"}
)
_NATIVE_FIELDS = frozenset(
    {"n_predict", "n_probs", "cache_prompt", "id_slot", "return_tokens", "content", "response_fields"}
)

_FORM = "multipart/form-data"
_MAX_PATH = 512
_UPSTREAM = "/upstream/"

# Unknown paths are forwarded only if every server reads them alike: no `..`, `//`, `%2e`, `;` or backslashes.
_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._~:@+-]*)+/?")

# The gateway's own routes, searched anywhere in a path.
_OWN = frozenset(
    (
        *("admin", "api", "docs", "events", "health", "healthz", "metrics", "models", "openapi.json", "readyz"),
        *("redoc", "ui", "version"),
    )
)


class LlamaCppAdapter(Adapter):
    """The adapter for llama.cpp's web UI, its tools, and everything written for `llama-server`."""

    name = WIRE
    operations = OPERATIONS

    def __init__(self) -> None:
        self._openai = OpenAIAdapter()

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request. The model is named in the body or in the query."""
        name = operation.name
        if name == UPSTREAM:
            return self._decode_upstream(operation, incoming)
        if name == WEBSOCKET:
            return self._decode_websocket(operation, incoming)
        if name in UNKNOWN:
            return _decode_unknown(self.origin(operation, incoming, content_type=_content_type(incoming)), incoming)
        if name == "rerank":
            return self._openai.decode(_RERANK, incoming)
        # JSON whatever the client calls it, on the path as the engine knows it.
        origin = self.origin(operation, incoming, path=operation.path.rstrip("/"), content_type="application/json")
        outside_body = model_outside_body(incoming)
        if name in _MODEL_INFO:
            return ModelInfoRequest(origin=origin, kind=name, model=outside_body)
        if operation.resumes:
            return streams.decode(origin, name)
        if name == "metrics":
            return Passthrough(origin=origin, model=outside_body)
        if name in ("adapters", "scale"):
            # The body is a list, so the model can only be in the query.
            if is_object(incoming.body):
                JsonBody(incoming.body)
            else:
                check_size(incoming.body)
            return Passthrough(origin=origin, model=outside_body, has_json=True)
        body = JsonBody(incoming.body)
        model = body.text("model") or outside_body
        if name == "load" or name == "unload":
            if model is None:
                raise BadRequest("model name is missing from the request", param="model")
            return LoadRequest(origin=origin, kind="load" if name == "load" else "unload", model=model)
        shared = _SHARED.get(origin.path)
        if shared is not None and _is_openai(body, incoming):
            return self._openai.decode(shared, incoming)
        output = Output(stream=name in COMPLETIONS and body.flag("stream"))
        if name == "completion" and completion.is_portable(body.members):
            return CompletionRequest(origin=origin, model=model, output=output)
        chosen = completion.has_response_fields(body.members)
        member = "" if chosen else ANSWER_MEMBERS.get(name, "")
        return Passthrough(origin=origin, model=model, output=output, has_json=True, member=member)

    def _decode_upstream(self, operation: Operation, incoming: Incoming) -> Request:
        """A request for any path of the engine of a model: `/upstream/MODEL/PATH`. Slashes in names are `%2F`."""
        model, path = _upstream_path(incoming.path)
        origin = self.origin(operation, incoming, path=path, content_type=_content_type(incoming))
        stream = incoming.method == "POST" and _model_and_stream(incoming.body, origin.content_type)[1]
        return Passthrough(origin=origin, model=model, output=Output(stream=stream))

    def _decode_websocket(self, operation: Operation, incoming: Incoming) -> Request:
        """A handshake for any path of the engine of a model: `/upstream/MODEL/PATH`, or PATH with the name in the query or a
        header."""
        if operation.path.startswith(_UPSTREAM):
            model, path = _upstream_path(incoming.path)
        else:
            _check_path(incoming)
            path = incoming.path
            named = model_outside_body(incoming)
            if named is None:
                raise UpgradeRequired(
                    f"{path[:200]} does not speak WebSocket here, and names no model whose engine might: send plain HTTP "
                    "requests, or name one in the path (/upstream/MODEL/PATH) or the query (?model=MODEL)"
                )
            model = named
        return WebSocketRequest(origin=self.origin(operation, incoming, path=path), model=model)

    def expand(self, request: Request) -> Request:
        if request.origin.wire != WIRE:
            return self._openai.expand(request)
        return completion.decode_request(request) if isinstance(request, CompletionRequest) else request

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        """Native completions get the sampling parameters only: their prompts have no chat template."""
        if request.origin.wire != WIRE:
            return self._openai.apply_preset(request, preset)
        if not isinstance(request, CompletionRequest):
            return request
        defaults = presets.preset_sampling(preset)
        body = presets.with_defaults(request.origin.body, defaults, aliases={"max_tokens": presets.MAX_TOKENS_NAMES})
        return msgspec.structs.replace(request, origin=msgspec.structs.replace(request.origin, body=body))

    def validate(self, request: Request, card: ModelCard) -> Request:
        """Rejects loading and unloading that is done already, and requests that would load a model by accident."""
        is_running = card.state in ("loaded", "loading")
        if isinstance(request, LoadRequest):
            if request.kind == "load" and is_running:
                raise BadRequest("model is already running", param="model")
            if request.kind == "unload" and not is_running:
                raise BadRequest("model is not running", param="model")
            return request
        origin = request.origin
        if origin.wire != WIRE or is_running or origin.operation in (UPSTREAM, WEBSOCKET):
            return request
        if origin.operation == OTHER_GET:
            raise NotFound(f"there is no {origin.method} {origin.path} here, and no running model that may know it")
        if origin.operation in UNKNOWN and request.model is None:
            raise ModelUnavailable('the request names no model and none is running; set "model", or load one')
        if origin.method in _READS:
            raise ModelUnavailable(f"model is not loaded: {card.name}", model=card.name)
        return request

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        if request.kind not in _MODEL_INFO:
            return super().model_info(request, listing)
        return models.model_info(request.kind, request.model, listing)

    def stream_info(self, request: StoredRequest, found: Sequence[StreamInfo]) -> WireResponse:
        return streams.stream_info(request, found)

    def is_subscription(self, request: ModelInfoRequest) -> bool:
        return request.kind == "watch"

    def change_events(self, before: ModelList | None, now: ModelList) -> bytes:
        return models.change_events(before, now)

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        if request.origin.wire != WIRE:
            return self._openai.encoder(request, response_id=response_id, created=created, progress=progress)
        return LlamaCppEncoder(request, progress=progress)

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        return error_response(error, operation)


def _upstream_path(path: str) -> tuple[str, str]:
    """The model and the engine's path of `/upstream/MODEL/PATH`. Raises `NotFound`."""
    name, slash, rest = path.removeprefix(_UPSTREAM).partition("/")
    model, path = unquote(name), f"/{rest}"
    if not model or not slash:
        raise NotFound("expected /upstream/MODEL/PATH, with %2F for a slash in the model's name")
    if path != "/" and (len(path) > _MAX_PATH or not _PLAIN_PATH.fullmatch(path)):
        raise NotFound(f"{path[:200]} is not forwarded: its engine might read it differently")
    if is_engine_state(path):
        raise NotFound(f"{path[:200]} is not forwarded: it is about the state of an engine, which serves all clients")
    return model, path


def _is_openai(body: JsonBody, incoming: Incoming) -> bool:
    """Whether the client expects OpenAI's response on a path that both protocols have.

    OpenAI's own SDK sends headers of its own. Other clients are recognised by their fields; `model` with `input` is
    OpenAI's as well.
    """
    if any(name.startswith("x-stainless-") for name in incoming.headers):
        return True
    names = body.members.keys()
    if names & _NATIVE_FIELDS:
        return False
    return bool(names & _OPENAI_FIELDS) or {"model", "input"} <= names


def _decode_unknown(origin: Origin, incoming: Incoming) -> Passthrough:
    """A request with an unknown path, for the engine. Raises `NotFound` for paths that are not forwarded."""
    _check_path(incoming)
    try:
        model, stream = _model_and_stream(incoming.body, origin.content_type)
        model = model or model_outside_body(incoming)
    except BadRequest as error:
        raise BadRequest(error.message) from None
    return Passthrough(origin=origin, model=model, output=Output(stream=stream), any_backend=True)


def _check_path(incoming: Incoming) -> None:
    path = incoming.path
    if len(path) <= _MAX_PATH and _PLAIN_PATH.fullmatch(path):
        segments = path.lower().strip("/").split("/")
        if segments[0] == "models" or segments[:2] == ["v1", "models"]:
            raise MethodNotAllowed(f"{path[:200]} takes GET, not {incoming.method}", allowed=("GET", "HEAD"))
        if not _OWN.intersection(segments) and not is_engine_state(path):
            return
    raise NotFound(f"there is no {incoming.method} {path[:200]} here")


def _content_type(incoming: Incoming) -> str | None:
    """That of a body which names none and is no JSON; `None` leaves it to the request."""
    named = incoming.headers.get("content-type") or _first_byte(incoming.body) in (b"", b"{", b"[")
    return None if named else "application/octet-stream"


def _first_byte(body: bytes) -> bytes:
    return body.lstrip(b" \t\r\n")[:1]


def _model_and_stream(body: bytes, content_type: str) -> tuple[str | None, bool]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _FORM:
        return multipart.field(body, content_type, "model"), multipart.field(body, content_type, "stream") == "true"
    start = _first_byte(body)
    if start == b"{" or (start and start != b"[" and kind == "application/json"):
        document = JsonBody(body)
        return document.text("model"), document.flag("stream")
    return None, False
