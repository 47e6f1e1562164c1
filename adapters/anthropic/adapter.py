"""Anthropic's protocol as clients speak it. Responses are written in `encoder.py`.

Requests are fully decoded at once and encoded anew for engines, even for llama-server, whose version of this protocol
reports a stop sequence as `end_turn`, has OpenAI's errors and ids, and passes system messages to chat templates that
reject them. Only backends of kind `anthropic` get the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hostler.adapters.anthropic import messages, models
from hostler.adapters.anthropic.encoder import AnthropicEncoder, CountEncoder
from hostler.adapters.anthropic.errors import error_response
from hostler.adapters.anthropic.operations import COUNT, FORWARDED_HEADERS, HEADER, MESSAGES, MODEL, MODELS, OPERATIONS
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.canonical import ChatRequest, CountRequest, ModelInfoRequest, Output, Request
from hostler.adapters.degrade import without_thinking
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError
from hostler.adapters.json_body import JsonBody
from hostler.adapters.model_list import ModelList
from hostler.adapters.presets import preset_sampling, with_defaults, with_messages
from hostler.adapters.rate_limits import RateLimit, anthropic_headers, openai_headers
from hostler.adapters.requested_model import model_outside_body
from hostler.profiles.presets import Preset

# The preset parameters that this protocol has, under its names. The required limit is always the client's.
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop_sequences"}


class AnthropicAdapter(Adapter):
    """The adapter for Anthropic's SDKs, Claude Code, and everything compatible with them."""

    name = WIRE
    operations = OPERATIONS

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request, with its conversation if any model can read it."""
        headers = tuple((name, incoming.headers[name]) for name in FORWARDED_HEADERS if name in incoming.headers)
        origin = self.origin(operation, incoming, headers=headers)
        if operation.name == MODELS:
            return ModelInfoRequest(origin=origin, kind=MODELS)
        if operation.name == MODEL:
            return ModelInfoRequest(origin=origin, kind=MODEL, model=incoming.path_params.get("id", "").rstrip("/"))
        JsonBody(incoming.body)  # raises for a body that is not safe to decode
        body = messages.decode_body(incoming.body)
        if not body.messages:
            raise BadRequest("messages: at least one message is required", param="messages")
        try:
            conversation = messages.decode_conversation(body)
        except messages.AnthropicOnly:
            # Whether the backend is one of Anthropic's own servers is not known yet.
            conversation = None
        model = body.model or model_outside_body(incoming)
        if operation.name == COUNT:
            return CountRequest(origin=origin, model=model, conversation=conversation)
        if body.max_tokens is None and HEADER in incoming.headers:
            # Anthropic requires it; clients of llama-server, which has the same path, need not send it.
            raise BadRequest("max_tokens: Field required", param="max_tokens")
        if body.max_tokens is not None and body.max_tokens < 0:
            raise BadRequest("max_tokens: must be 0 or more", param="max_tokens")
        schema = messages.decode_schema(body)
        output = Output(stream=body.stream is True, include_usage=True, schema=schema, details=True)
        return ChatRequest(origin=origin, model=model, output=output, conversation=conversation)

    def expand(self, request: Request) -> Request:
        """The request with its conversation. Raises `BadRequest` if only Anthropic's own servers can read it."""
        if isinstance(request, ChatRequest | CountRequest) and request.conversation is None:
            conversation = messages.decode_conversation(messages.decode_body(request.origin.body))
            return msgspec.structs.replace(request, conversation=conversation)
        return request

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """Claude Code asks for reasoning in every request, also from models that reject it."""
        return without_thinking(request, rejected)

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        if not isinstance(request, ChatRequest | CountRequest):
            return request
        defaults: dict[str, Any] = {}
        if isinstance(request, ChatRequest):
            sampling = preset_sampling(preset)
            defaults = {_SAMPLING[name]: value for name, value in sampling.items() if name in _SAMPLING}
        if preset.system:
            defaults["system"] = preset.system
        # The system prompt has a field of its own and is not among the messages.
        first = [message for message in preset.messages if message.role != "system"]
        body = with_messages(with_defaults(request.origin.body, defaults), first)
        origin = msgspec.structs.replace(request.origin, body=body)
        conversation = request.conversation
        if conversation is not None:
            conversation = messages.decode_conversation(messages.decode_body(body))
        return msgspec.structs.replace(request, origin=origin, conversation=conversation)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        if request.kind == MODELS:
            return models.list_models(listing, request.origin.query)
        if request.kind == MODEL:
            return models.show_model(listing, request.model or "")
        return super().model_info(request, listing)

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        if request.origin.operation == MESSAGES:
            return AnthropicEncoder(request, response_id=response_id, progress=progress)
        return CountEncoder()

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        return error_response(error)

    def rate_limit_headers(self, limits: Sequence[RateLimit], now: float) -> list[tuple[str, str]]:
        return openai_headers(limits) + anthropic_headers(limits, now)
