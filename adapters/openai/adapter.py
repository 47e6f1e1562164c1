"""OpenAI's protocol as clients speak it: bytes to requests, probes and errors to bytes. Answers are in `encoder.py`."""

from __future__ import annotations

import msgspec

from hostler.adapters import multipart
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.degrade import without_thinking
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError, NotFound
from hostler.adapters.json_body import JsonBody
from hostler.adapters.model_list import ModelList
from hostler.adapters.openai import chat, models, responses
from hostler.adapters.openai.chat import with_preset
from hostler.adapters.openai.encoder import OpenAIEncoder
from hostler.adapters.openai.errors import refusal
from hostler.adapters.openai.operations import FORMS, OPERATIONS
from hostler.adapters.openai.rerank import RerankEncoder, wants_documents
from hostler.adapters.openai.responses_encoder import ResponsesEncoder
from hostler.adapters.openai.schema import RESPONSES, WIRE, StreamOptions
from hostler.adapters.request_model import model_outside_body
from hostler.adapters.types import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    ModelInfoRequest,
    Output,
    Passthrough,
    Request,
    RerankRequest,
)
from hostler.profiles.presets import Preset

_FORM = "multipart/form-data"
# What servers say of a route that they do not have; of a model that they do not have, too, which a chat will tell again.
_NO_ROUTE = frozenset({404, 405, 501})
# A request for a response that is to be told to a backend of this protocol as a chat.
_AS_CHAT = "responses told as a chat"
_OPTIONS = msgspec.json.Decoder(StreamOptions | None)


class OpenAIAdapter(Adapter):
    """The adapter for OpenAI's own SDKs and everything that imitates them."""

    name = WIRE
    operations = OPERATIONS

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request. Only the few fields that decide its way are read; the rest stays bytes."""
        name = operation.name
        content_type = incoming.headers.get("content-type", "application/json")
        formed = name in FORMS and content_type.lower().startswith(_FORM)
        document = None if formed or operation.probe else JsonBody(incoming.body)
        origin = self.origin(operation, incoming, json_body=document)
        if operation.probe:
            model = None if name == "models" else incoming.path_params.get("id", "").rstrip("/")
            return ModelInfoRequest(origin=origin, kind=name, model=model)
        if document is None:
            model = multipart.field(incoming.body, content_type, "model") or model_outside_body(incoming)
            stream = multipart.field(incoming.body, content_type, "stream") == "true"
            return Passthrough(origin=origin, model=model, output=Output(stream=stream))
        model = document.text("model") or model_outside_body(incoming)
        if name == "chat":
            if not document.has("messages"):
                raise BadRequest("`messages` is missing.", param="messages")
            if bytes(memoryview(document.members["messages"])[:1]) != b"[":
                raise BadRequest("`messages` must be an array.", param="messages")
            return ChatRequest(origin=origin, model=model, output=_output(document))
        if name == "completions":
            return CompletionRequest(origin=origin, model=model, output=_output(document))
        if name == "embeddings":
            return EmbedRequest(origin=origin, model=model)
        if name == "rerank":
            return RerankRequest(origin=origin, model=model)
        if name == "responses":
            origin = msgspec.structs.replace(origin, wire=RESPONSES)
            return ChatRequest(origin=origin, model=model, output=responses.output(document))
        stream_ = document.flag("stream")
        return Passthrough(origin=origin, model=model, output=Output(stream=stream_))

    def expand(self, request: Request) -> Request:
        """The request with everything decoded that a backend of another protocol needs."""
        if isinstance(request, ChatRequest) and request.origin.operation == "responses":
            return request if request.conversation is not None else responses.expand(request)
        return chat.expand(request)

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        """The request as it is when it is asked of a model that was made of another one."""
        return with_preset(request, preset)

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """A chat instead of a response, for a backend that knows no responses; no wish to think for a model that cannot."""
        origin = request.origin
        try:
            expanded = self.expand(request)
        except BadRequest:
            return None  # what cannot be told in another way is refused in the backend's words
        if origin.wire == RESPONSES and rejected.wire == WIRE and rejected.backend_status in _NO_ROUTE:
            return msgspec.structs.replace(expanded, origin=msgspec.structs.replace(origin, wire=_AS_CHAT))
        return without_thinking(expanded, rejected)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        """The list of models, or one of them."""
        if request.kind == "models":
            return models.models(listing)
        if request.kind == "model":
            return models.model(listing, request.model or "")
        raise NotFound("There is nothing like that to ask for.")

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        """An encoder for one reply. Requests for structured output or several choices get no words as progress."""
        if isinstance(request, ChatRequest) and request.origin.operation == "responses":
            return ResponsesEncoder(request, response_id=response_id, created=created, progress=progress)
        if isinstance(request, RerankRequest) and wants_documents(request.origin.body):
            return RerankEncoder(request.origin.body)
        return OpenAIEncoder(request, response_id=response_id, created=created, progress=progress)

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete answer."""
        return refusal(error)


def _output(document: JsonBody) -> Output:
    options = document.get("stream_options", _OPTIONS, expected="an object")
    choices = document.number("n")
    if choices is not None and not 1 <= choices <= 1024:
        raise BadRequest("`n` must be a number from 1 to 1024.", param="n")
    return Output(
        stream=document.flag("stream"),
        include_usage=options is not None and options.include_usage is True,
        choices=choices or 1,
        schema=chat.schema(document),
        logprobs=chat.logprobs(document),
    )
