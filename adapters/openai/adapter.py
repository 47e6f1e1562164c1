"""OpenAI's protocol as clients speak it. Responses are written in `encoder.py` and `responses_encoder.py`."""

from __future__ import annotations

import re

import msgspec

from hostler.adapters import multipart
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    ModelInfoRequest,
    Output,
    Passthrough,
    Request,
    RerankRequest,
    StoredRequest,
)
from hostler.adapters.degrade import without_thinking
from hostler.adapters.error_body import read_error
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError
from hostler.adapters.json_body import JsonBody
from hostler.adapters.model_list import ModelList
from hostler.adapters.openai import chat, models, responses
from hostler.adapters.openai import stored as stored_responses
from hostler.adapters.openai.chat_tools import uses_custom_tools
from hostler.adapters.openai.custom_tools import has_custom_tools
from hostler.adapters.openai.encoder import OpenAIEncoder
from hostler.adapters.openai.errors import error_response
from hostler.adapters.openai.operations import FORMS, OPERATIONS
from hostler.adapters.openai.rerank import RerankEncoder, wants_documents
from hostler.adapters.openai.responses_encoder import ResponsesEncoder
from hostler.adapters.openai.responses_tools import has_further_tools
from hostler.adapters.openai.schema import CUSTOM_CHAT, RESPONSES, WIRE, StreamOptions
from hostler.adapters.openai.whole_response import JSON_OPERATIONS
from hostler.adapters.requested_model import model_outside_body
from hostler.adapters.stored_response import StoredResponse, StoredResponses
from hostler.profiles.presets import Preset

_FORM = "multipart/form-data"
# What servers answer for a route that they do not have.
_NO_ROUTE = frozenset({404, 405, 501})
#: Of what a request names, and a server does not have.
_NAMES_A_THING = re.compile(r"model|(response|item|conversation)\b.{0,20}\bid\b", re.IGNORECASE)
# What servers answer for a body that they cannot read.
_INVALID = frozenset({400, 422})
# The wire of a request that is sent to a backend of this protocol as a chat with functions.
_AS_CHAT = "as chat"
_STREAM_OPTIONS = msgspec.json.Decoder(StreamOptions | None)


class OpenAIAdapter(Adapter):
    """The adapter for OpenAI's SDKs and everything compatible with them."""

    name = WIRE
    operations = OPERATIONS

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request. Only the few fields that decide its route are decoded; the rest stays bytes."""
        name = operation.name
        content_type = incoming.headers.get("content-type", "application/json")
        is_form = name in FORMS and content_type.lower().startswith(_FORM)
        is_stored = name in ("response", "input_items")
        body = None if is_form or operation.model_info or is_stored else JsonBody(incoming.body)
        origin = self.origin(operation, incoming, json_body=body)
        if operation.model_info:
            model = None if name == "models" else incoming.path_params.get("id", "").rstrip("/")
            return ModelInfoRequest(origin=origin, kind=name, model=model)
        if is_stored:
            return StoredRequest(origin=origin, kind=name, id=incoming.path_params.get("id", ""))
        if body is None:
            model = multipart.field(incoming.body, content_type, "model") or model_outside_body(incoming)
            stream = (multipart.field(incoming.body, content_type, "stream") or "").lower() == "true"
            return Passthrough(
                origin=origin, model=model, output=Output(stream=stream), has_json=name in JSON_OPERATIONS
            )
        model = body.text("model") or model_outside_body(incoming)
        if name == "chat":
            if not body.has("messages"):
                raise BadRequest("`messages` is missing.", param="messages")
            if bytes(memoryview(body.members["messages"])[:1]) != b"[":
                raise BadRequest("`messages` must be an array.", param="messages")
            if has_custom_tools(incoming.body) and uses_custom_tools(body):
                origin = msgspec.structs.replace(origin, wire=CUSTOM_CHAT)
            return ChatRequest(origin=origin, model=model, output=_output(body))
        if name == "completions":
            return CompletionRequest(origin=origin, model=model, output=_output(body))
        if name == "embeddings":
            return EmbedRequest(origin=origin, model=model)
        if name == "rerank":
            return RerankRequest(origin=origin, model=model)
        if name == "responses":
            origin = msgspec.structs.replace(origin, wire=RESPONSES)
            return ChatRequest(origin=origin, model=model, output=responses.decode_output(body))
        # Speech is streamed as sound unless events are asked for; some of its clients send `stream` as well.
        stream = body.text("stream_format") == "sse" if name == "speech" else body.flag("stream")
        output = Output(stream=stream)
        return Passthrough(origin=origin, model=model, output=output, has_json=name in JSON_OPERATIONS)

    def expand(self, request: Request) -> Request:
        if isinstance(request, ChatRequest) and request.origin.operation == "responses":
            return request if request.conversation is not None else responses.decode_request(request)
        return chat.decode_request(request)

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        return chat.with_preset(request, preset)

    def with_stored(self, request: Request, stored: StoredResponses, *, pass_on: bool) -> Request:
        if isinstance(request, ChatRequest) and request.origin.wire == RESPONSES:
            return stored_responses.with_stored(request, stored, pass_on=pass_on)
        return request

    def wants_stored(self, request: Request) -> bool:
        return (
            isinstance(request, ChatRequest)
            and request.origin.wire == RESPONSES
            and stored_responses.wants_stored(request)
        )

    def stored_response(
        self, request: Request, body: bytes, at: float, stored: StoredResponses
    ) -> StoredResponse | None:
        if not isinstance(request, ChatRequest):
            return None
        return stored_responses.stored_response(request, body, at, stored)

    def stored_info(self, request: StoredRequest, stored: StoredResponses) -> WireResponse:
        return stored_responses.stored_info(request, stored)

    def check_for_engines(self, request: Request) -> None:
        if request.origin.wire == RESPONSES:
            self.expand(request)

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """A chat for a backend without the responses API, or without custom tools there; no reasoning options for a model
        without reasoning. Raises `BadRequest` for a backend that lacks the only route that could serve the request."""
        origin = request.origin
        lacks_route = _lacks_route(rejected)
        try:
            expanded = self.expand(request)
        except BadRequest:
            if origin.wire == RESPONSES and rejected.wire == WIRE and lacks_route:
                raise
            return None  # no other form of the request exists: the backend's own error stands
        is_unknown = (lacks_route and origin.wire == RESPONSES) or _lacks_custom_tools(rejected, request)
        if origin.wire in (RESPONSES, CUSTOM_CHAT) and rejected.wire == WIRE and is_unknown:
            return msgspec.structs.replace(expanded, origin=msgspec.structs.replace(origin, wire=_AS_CHAT))
        return without_thinking(expanded, rejected)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        if request.kind == "models":
            return models.list_models(listing)
        if request.kind == "model":
            return models.show_model(listing, request.model or "")
        return super().model_info(request, listing)

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        if isinstance(request, ChatRequest) and request.origin.operation == "responses":
            return ResponsesEncoder(request, response_id=response_id, created=created, progress=progress)
        if isinstance(request, RerankRequest) and wants_documents(request.origin.body):
            return RerankEncoder(request.origin.body)
        return OpenAIEncoder(request, response_id=response_id, created=created, progress=progress)

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        return error_response(error, operation)


def _lacks_route(rejected: BackendRejected) -> bool:
    """Whether the backend does not know the route. A 404 for an unknown model, response or item names it."""
    if rejected.backend_status not in _NO_ROUTE:
        return False
    details = read_error(rejected.body)
    return details is None or (details.code != "model_not_found" and _NAMES_A_THING.search(details.message) is None)


def _lacks_custom_tools(rejected: BackendRejected, request: Request) -> bool:
    """Whether the backend rejects a request for its tools that are no plain functions, or for their calls in the history."""
    body = request.origin.body
    if rejected.backend_status not in _INVALID or not (has_custom_tools(body) or has_further_tools(body)):
        return False
    words = rejected.body.lower()
    return any(word in words for word in (b"tool", b"custom", b"namespace", b"input"))


def _output(body: JsonBody) -> Output:
    options = body.get("stream_options", _STREAM_OPTIONS, expected="an object")
    choices = body.number("n")
    if choices is not None and not 1 <= choices <= 1024:
        raise BadRequest("`n` must be a number from 1 to 1024.", param="n")
    return Output(
        stream=body.flag("stream"),
        include_usage=options is not None and options.include_usage is True,
        choices=choices or 1,
        schema=chat.decode_schema(body),
        logprobs=chat.decode_logprobs(body),
    )
