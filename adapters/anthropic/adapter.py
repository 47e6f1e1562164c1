"""Anthropic's protocol as clients speak it: bytes to requests, probes and errors to bytes.

Answers are in `encoder.py`. Requests are understood in full at once and written anew for engines, even for those that
speak this protocol after a fashion: llama-server names a hit stop sequence `end_turn`, answers with errors and ids of
OpenAI's, and hands system turns to chat templates that refuse them. Only Anthropic's own servers get the same bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.anthropic import messages, models
from hostler.adapters.anthropic.encoder import AnthropicEncoder, CountEncoder
from hostler.adapters.anthropic.errors import error_response
from hostler.adapters.anthropic.operations import COUNT, FORWARDED, HEADER, MESSAGES, MODEL, MODELS, OPERATIONS
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.degrade import without_thinking
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError, NotFound
from hostler.adapters.json_body import JsonBody
from hostler.adapters.model_list import ModelList
from hostler.adapters.presets import preset_sampling, with_defaults, with_messages
from hostler.adapters.request_model import model_outside_body
from hostler.adapters.types import ChatRequest, CountRequest, ModelInfoRequest, Output, Request
from hostler.profiles.presets import Preset

# What a preset may say of sampling, in this protocol's words; that it needs a limit at all is said by the client.
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop_sequences"}


class AnthropicAdapter(Adapter):
    """The adapter for Anthropic's own SDKs, Claude Code, and everything that imitates them."""

    name = WIRE
    operations = OPERATIONS

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request, with its conversation if any model can follow it. Fields that are not known are read over."""
        headers = tuple((name, incoming.headers[name]) for name in FORWARDED if name in incoming.headers)
        origin = self.origin(operation, incoming, headers=headers)
        if operation.name == MODELS:
            return ModelInfoRequest(origin=origin, kind=MODELS)
        if operation.name == MODEL:
            return ModelInfoRequest(origin=origin, kind=MODEL, model=incoming.path_params.get("id", "").rstrip("/"))
        JsonBody(incoming.body)
        body = messages.read(incoming.body)
        if not body.messages:
            raise BadRequest("messages: at least one message is required", param="messages")
        try:
            conversation = messages.conversation(body)
        except messages.Beyond:
            # Anthropic's own servers can: whether one of them answers is not known yet.
            conversation = None
        model = body.model or model_outside_body(incoming)
        if operation.name == COUNT:
            return CountRequest(origin=origin, model=model, conversation=conversation)
        if body.max_tokens is None and HEADER in incoming.headers:
            # Who speaks to Anthropic is refused without it; who speaks to llama-server, on the same path, need not say it.
            raise BadRequest("max_tokens: Field required", param="max_tokens")
        if body.max_tokens is not None and body.max_tokens < 0:
            raise BadRequest("max_tokens: must be 0 or more", param="max_tokens")
        output = Output(stream=body.stream is True, include_usage=True, schema=messages.schema(body), details=True)
        return ChatRequest(origin=origin, model=model, output=output, conversation=conversation)

    def expand(self, request: Request) -> Request:
        """The request with its conversation. Raises `BadRequest` if only Anthropic's own servers could answer it."""
        if isinstance(request, ChatRequest | CountRequest) and request.conversation is None:
            conversation = messages.conversation(messages.read(request.origin.body))
            return msgspec.structs.replace(request, conversation=conversation)
        return request

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """The request without the wish to think, which Claude Code sends along with every one, for models that cannot."""
        return without_thinking(request, rejected)

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        """The request as it is when it is asked of a model that was made of another one."""
        if not isinstance(request, ChatRequest | CountRequest):
            return request
        known: dict[str, Any] = {}
        if isinstance(request, ChatRequest):  # a count is not sampled
            known = {_SAMPLING[name]: value for name, value in preset_sampling(preset).items() if name in _SAMPLING}
        if preset.system:
            known["system"] = preset.system
        # There is one place for the system's words, and it is not among the turns.
        turns = [turn for turn in preset.messages if turn.role != "system"]
        body = with_messages(with_defaults(request.origin.body, known), turns)
        origin = msgspec.structs.replace(request.origin, body=body)
        conversation = None if request.conversation is None else messages.conversation(messages.read(body))
        return msgspec.structs.replace(request, origin=origin, conversation=conversation)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        """The list of models, or one of them."""
        if request.kind == MODELS:
            return models.models(listing, request.origin.query)
        if request.kind == MODEL:
            return models.model(listing, request.model or "")
        raise NotFound("There is nothing like that to ask for.")

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        """An encoder for one reply."""
        if request.origin.operation == MESSAGES:
            return AnthropicEncoder(request, response_id=response_id, progress=progress)
        return CountEncoder()

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete answer."""
        return error_response(error)
