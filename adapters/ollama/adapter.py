"""Ollama's protocol as clients speak it. Responses are written in `encoder.py` and `progress.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    Media,
    ModelInfoRequest,
    ModelOperation,
    Origin,
    Request,
)
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError, MethodNotAllowed, NotFound
from hostler.adapters.local_origin import is_local_origin
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.model_names import DEFAULT_HOST, DEFAULT_NAMESPACE, ollama_name
from hostler.adapters.ollama import go_compat, model_ops, models, requests
from hostler.adapters.ollama.context import pack_context
from hostler.adapters.ollama.encoder import OllamaEncoder
from hostler.adapters.ollama.errors import error_response
from hostler.adapters.ollama.names import require_name
from hostler.adapters.ollama.operations import OPERATIONS, UNKNOWN, WRONG_METHOD, allowed_methods, redirect_target
from hostler.adapters.ollama.progress import ProgressEncoder
from hostler.adapters.ollama.schema import PLAIN, VERSION, WIRE
from hostler.adapters.ollama.truncation import may_truncate, truncated
from hostler.adapters.requested_model import with_model_in_body
from hostler.profiles.presets import Preset

_DECODERS: Mapping[str, Callable[[Origin], Request]] = {
    "chat": requests.decode_chat,
    "generate": requests.decode_generate,
    "embed": requests.decode_embed,
    "embeddings": requests.decode_embeddings,
    "pull": model_ops.decode_pull,
    "create": model_ops.decode_create,
    "copy": model_ops.decode_copy,
    "delete": model_ops.decode_delete,
}
# Operations whose model may be named outside of the body.
_MODEL_OUTSIDE_BODY = frozenset({"chat", "generate", "embed", "embeddings", "show"})
_COPILOT = "githubcopilotchat/"
_STATUS = {"cloud": {"disabled": True, "source": "env"}}


class OllamaAdapter(Adapter):
    """The adapter for Ollama's own clients and everything written for its API."""

    name = WIRE
    operations = OPERATIONS

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request, fully decoded. The model's name stays as sent: the response repeats it."""
        name = operation.name
        if name == UNKNOWN and redirect_target(incoming.method, incoming.path) is None:
            raise NotFound(f"there is no {incoming.path[:200]} here")
        body = with_model_in_body(incoming) if name in _MODEL_OUTSIDE_BODY else incoming.body
        if name == WRONG_METHOD:
            allowed = tuple(sorted(allowed_methods(incoming.path)))
            raise MethodNotAllowed(f"{incoming.path[:200]} does not take {incoming.method[:20]}", allowed=allowed)
        origin = self.origin(operation, incoming, body=body)
        decoder = _DECODERS.get(name)
        if decoder is not None:
            return decoder(origin)
        if name == "show":
            return _decode_show(origin, incoming)
        if name in ("blob", "upload"):  # the body of an upload is streamed to disk and never gets here
            return model_ops.decode_blob(origin, incoming.path_params.get("digest", ""))
        return ModelInfoRequest(origin=origin, kind=name)

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        return _with_preset(request, preset) if isinstance(request, ChatRequest | CompletionRequest) else request

    def validate(self, request: Request, card: ModelCard) -> Request:
        """Rejects what the model cannot do, and turns reasoning on if the model has it, unless the client turns it off.

        Nothing is known, and so nothing rejected, for a model whose file could not be read.
        """
        if isinstance(request, ChatRequest) and request.conversation is not None:
            wanted = request.conversation.thinking
            thinking = requests.supported_thinking(wanted, card)
            if thinking is not wanted:
                changed = msgspec.structs.replace(request.conversation, thinking=thinking)
                request = msgspec.structs.replace(request, conversation=changed)
        if card.facts is None or not isinstance(request, ChatRequest | CompletionRequest):
            return request
        sent = request.model or ""
        if "completion" not in card.capabilities and not card.facts.chat_template:
            raise BadRequest(f"{go_compat.quote(sent)} does not support {request.origin.operation}", param="model")
        full_name = f"{DEFAULT_HOST}/{DEFAULT_NAMESPACE}/{ollama_name(card.name)}"
        if isinstance(request, CompletionRequest):
            if request.suffix is not None and "insert" not in card.capabilities:
                raise BadRequest(f"{full_name} does not support insert", param="suffix")
            return request
        conversation = request.conversation
        if conversation is None:
            return request
        if conversation.tools and "tools" not in card.capabilities:
            raise BadRequest(f"{full_name} does not support tools", param="tools")
        media = {part.kind for message in conversation.messages for part in message.parts if isinstance(part, Media)}
        if "image" in media and "vision" not in card.capabilities:
            raise BadRequest(f"{full_name} does not support vision", param="images")
        if "audio" in media and "audio" not in card.capabilities:
            raise BadRequest(f"{full_name} does not support audio", param="images")
        can_think = "thinking" in card.capabilities
        if conversation.thinking and not can_think:
            raise BadRequest(f"{go_compat.quote(sent)} does not support thinking", param="think")
        if conversation.thinking is None and can_think:
            return msgspec.structs.replace(request, conversation=msgspec.structs.replace(conversation, thinking=True))
        return request

    def shortens(self, request: Request) -> bool:
        """Ollama truncates prompts, unless the client forbids it."""
        return may_truncate(request)

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """The request truncated as Ollama does it, if it exceeded the context."""
        return truncated(request, rejected)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        kind, body, name = request.kind, request.origin.body, request.model or ""
        answers: Mapping[str, Callable[[], WireResponse]] = {
            "version": lambda: models.respond({"version": VERSION}),
            "tags": lambda: models.list_tags(listing),
            "ps": lambda: models.list_running(listing),
            "show": lambda: models.show_model(listing, name),
            "show-verbose": lambda: models.show_model(listing, name),
            "show-copilot": lambda: models.show_model(listing, name, basename=True),
            "show-copilot-verbose": lambda: models.show_model(listing, name, basename=True),
            "status": lambda: models.respond(_STATUS),
            "recommendations": lambda: models.respond({"recommendations": []}),
            "me": lambda: model_ops.account_info(kind),
            "signout": lambda: model_ops.account_info(kind),
            "search": lambda: model_ops.web_search(kind, body),
            "fetch": lambda: model_ops.web_search(kind, body),
            "push": lambda: model_ops.push(listing, body),
            UNKNOWN: lambda: _redirect(request.origin),
        }
        return answers[kind]() if kind in answers else super().model_info(request, listing)

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        if isinstance(request, ModelOperation):
            return ProgressEncoder(request)
        return OllamaEncoder(request, response_id=response_id, created=created, progress=progress)

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        return error_response(error, operation)

    def allows_origin(self, origin: str) -> bool:
        """The origins that Ollama allows by default."""
        return is_local_origin(origin)


def _decode_show(origin: Origin, incoming: Incoming) -> ModelInfoRequest:
    fields = go_compat.decode_fields(origin.body, "ShowRequest")
    name = require_name(fields.string("model") or fields.string("name"), missing="model is required")
    kind = "show"
    if incoming.headers.get("user-agent", "").lower().startswith(_COPILOT):
        kind = "show-copilot"
    if fields.flag("verbose"):
        kind = f"{kind}-verbose"
    return ModelInfoRequest(origin=origin, kind=kind, model=name)


def _with_preset(request: ChatRequest | CompletionRequest, preset: Preset) -> Request:
    """The request with the preset's options, system prompt and messages wherever it has none of its own."""
    origin = request.origin
    body: dict[str, Any] = go_compat.decode_fields(origin.body, "Request").all()
    options = {name.lower(): value for name, value in body.get("options", {}).items() if value is not None}
    if preset.parameters:
        body["options"] = {**preset.parameters, **options}
    if origin.operation == "chat":
        own = body.get("messages", [])
        messages = [*({"role": message.role, "content": message.content} for message in preset.messages), *own]
        first = own[0] if own and isinstance(own[0], dict) else {}
        role = {name.lower(): value for name, value in first.items()}.get("role")
        if preset.system and str(role).lower() != "system":
            messages.insert(0, {"role": "system", "content": preset.system})
        body["messages"] = messages
    elif not body.get("raw"):
        if preset.system and not body.get("system"):
            body["system"] = preset.system
        if preset.messages and not body.get("context") and not body.get("suffix"):
            body["context"] = pack_context([(message.role, message.content) for message in preset.messages])
    changed = msgspec.structs.replace(origin, body=go_compat.encode_json(body))
    return requests.decode_chat(changed) if origin.operation == "chat" else requests.decode_generate(changed)


def _redirect(origin: Origin) -> WireResponse:
    found = redirect_target(origin.method, origin.path)
    if found is None:
        raise NotFound(f"there is no {origin.path[:200]} here")
    status, path = found
    location = f"{path}?{origin.query}" if origin.query else path
    return WireResponse(status=status, media_type=PLAIN, headers=(("Location", location),))
