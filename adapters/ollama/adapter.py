"""Ollama's protocol as clients speak it: bytes to requests, probes and orders to answers. Answers are in `encoder.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hostler.adapters.base import Adapter, Incoming, Operation, WireResponse
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError, MethodNotAllowed, NotFound
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.model_names import DEFAULT_HOST, DEFAULT_NAMESPACE, ollama_name
from hostler.adapters.ollama import go_compat, model_ops, models, requests
from hostler.adapters.ollama import requests as memory
from hostler.adapters.ollama.encoder import OllamaEncoder
from hostler.adapters.ollama.errors import error_response
from hostler.adapters.ollama.go_compat import quoted, read
from hostler.adapters.ollama.names import named
from hostler.adapters.ollama.operations import OPERATIONS, UNKNOWN, WRONG, allowed_methods, redirect_target
from hostler.adapters.ollama.progress import StageEncoder
from hostler.adapters.ollama.schema import PLAIN, VERSION, WIRE
from hostler.adapters.ollama.truncation import shortened
from hostler.adapters.request_model import with_model_in_body
from hostler.adapters.types import (
    ChatRequest,
    CompletionRequest,
    Media,
    ModelInfoRequest,
    ModelOperation,
    Origin,
    Request,
)
from hostler.profiles.presets import Preset

# Pages that this machine serves itself and apps that bring a browser along: no site on the web can claim to be one.
# Ollama takes `file://` as well; here it stays shut, since a page that was saved or sent is anybody's.
_WELCOME = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::[0-9]{1,5})?"
    r"|(?:app|tauri|vscode-webview|vscode-file)://[\x21-\x7e]{0,200}"
)


def welcome(origin: str) -> bool:
    """Whether pages of this origin may ask, as the header `Origin` names it."""
    return _WELCOME.fullmatch(origin) is not None


def with_preset(request: Request, preset: Preset) -> Request:
    """The request with the preset's options, system turn and first turns, wherever it says nothing itself."""
    if not isinstance(request, ChatRequest | CompletionRequest):
        return request
    origin = request.origin
    body: dict[str, Any] = go_compat.read(origin.body, "Request").all()
    given = {name.lower(): value for name, value in body.get("options", {}).items() if value is not None}
    if preset.parameters:
        body["options"] = {**preset.parameters, **given}
    if origin.operation == "chat":
        sent = body.get("messages", [])
        turns = [*({"role": turn.role, "content": turn.content} for turn in preset.messages), *sent]
        first = sent[0] if sent and isinstance(sent[0], dict) else {}
        says = {name.lower(): value for name, value in first.items()}.get("role")
        if preset.system and str(says).lower() != "system":
            turns.insert(0, {"role": "system", "content": preset.system})
        body["messages"] = turns
    elif not body.get("raw"):
        if preset.system and not body.get("system"):
            body["system"] = preset.system
        if preset.messages and not body.get("context") and not body.get("suffix"):
            body["context"] = memory.pack([(turn.role, turn.content) for turn in preset.messages])
    changed = msgspec.structs.replace(origin, body=go_compat.write(body))
    return requests.chat(changed) if origin.operation == "chat" else requests.generate(changed)


_DECODERS: Mapping[str, Callable[[Origin], Request]] = {
    "chat": requests.chat,
    "generate": requests.generate,
    "embed": requests.embed,
    "embeddings": requests.embeddings,
    "pull": model_ops.pull,
    "create": model_ops.create,
    "copy": model_ops.copy,
    "delete": model_ops.delete,
}
_COPILOT = "githubcopilotchat/"
_STATUS = {"cloud": {"disabled": True, "source": "env"}}
# What is asked of a model, which may be named outside of the body.
_QUESTIONS = frozenset({"chat", "generate", "embed", "embeddings", "show"})


class OllamaAdapter(Adapter):
    """The adapter for Ollama's own clients and everything that was written for its interface."""

    name = WIRE
    operations = OPERATIONS

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request, understood in full. The model's name stays as it was sent: the answer repeats it."""
        if operation.name == UNKNOWN and redirect_target(incoming.method, incoming.path) is None:
            raise NotFound(f"there is no {incoming.path[:200]} here")
        body = with_model_in_body(incoming) if operation.name in _QUESTIONS else incoming.body
        if operation.name == WRONG:
            allowed = tuple(sorted(allowed_methods(incoming.path)))
            raise MethodNotAllowed(f"{incoming.path[:200]} does not take {incoming.method[:20]}", allowed=allowed)
        origin = self.origin(operation, incoming, body=body)
        decoder = _DECODERS.get(operation.name)
        if decoder is not None:
            return decoder(origin)
        kind, asked = operation.name, None
        if kind == "show":
            fields = read(body, "ShowRequest")
            asked = named(fields.string("model") or fields.string("name"), missing="model is required")
            if incoming.headers.get("user-agent", "").lower().startswith(_COPILOT):
                kind = "show-copilot"
            if fields.flag("verbose"):
                kind = f"{kind}-verbose"
        elif kind in ("blob", "upload"):
            # What is uploaded is streamed to disk past this adapter.
            return model_ops.blob(origin, incoming.path_params.get("digest", ""))
        return ModelInfoRequest(origin=origin, kind=kind, model=asked)

    def expand(self, request: Request) -> Request:
        """The request: it was understood in full when it came."""
        return request

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        """The request as it is when it is asked of a model that was made of another one."""
        return with_preset(request, preset)

    def validate(self, request: Request, card: ModelCard) -> Request:
        """Refuses what the model cannot do, and lets a model think that can if nobody says otherwise.

        Of a model whose file nobody has read nothing is known, so nothing is refused.
        """
        if card.facts is None or not isinstance(request, ChatRequest | CompletionRequest):
            return request
        able = card.capabilities
        sent = request.model or ""
        if "completion" not in able:
            raise BadRequest(f"{quoted(sent)} does not support {request.origin.operation}", param="model")
        full = f"{DEFAULT_HOST}/{DEFAULT_NAMESPACE}/{ollama_name(card.name)}"
        if isinstance(request, CompletionRequest):
            if request.suffix is not None and "insert" not in able:
                raise BadRequest(f"{full} does not support insert", param="suffix")
            return request
        conversation = request.conversation
        if conversation is None:
            return request
        if conversation.tools and "tools" not in able:
            raise BadRequest(f"{full} does not support tools", param="tools")
        media = {part.kind for message in conversation.messages for part in message.parts if isinstance(part, Media)}
        if "image" in media and "vision" not in able:
            raise BadRequest(f"{full} does not support vision", param="images")
        if "audio" in media and "audio" not in able:
            raise BadRequest(f"{full} does not support audio", param="images")
        thinks = "thinking" in able
        if conversation.thinking and not thinks:
            raise BadRequest(f"{quoted(sent)} does not support thinking", param="think")
        if conversation.thinking is None and thinks:
            return msgspec.structs.replace(request, conversation=msgspec.structs.replace(conversation, thinking=True))
        return request

    def allows_origin(self, origin: str) -> bool:
        """Whether pages of this origin may ask: those that Ollama lets in by itself."""
        return welcome(origin)

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """The request without its oldest turns, or with its longest text cut, when it did not fit into the context."""
        return shortened(request, rejected)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        """The answer to a probe or an order."""
        kind, body, asked = request.kind, request.origin.body, request.model or ""
        simple: Mapping[str, Callable[[], WireResponse]] = {
            "version": lambda: models.respond({"version": VERSION}),
            "tags": lambda: models.tags(listing),
            "ps": lambda: models.running(listing),
            "show": lambda: models.show(listing, asked),
            "show-verbose": lambda: models.show(listing, asked),
            "show-copilot": lambda: models.show(listing, asked, basename=True),
            "show-copilot-verbose": lambda: models.show(listing, asked, basename=True),
            "status": lambda: models.respond(_STATUS),
            "recommendations": lambda: models.respond({"recommendations": []}),
            "me": lambda: model_ops.account(kind),
            "signout": lambda: model_ops.account(kind),
            "search": lambda: model_ops.web(kind, body),
            "fetch": lambda: model_ops.web(kind, body),
            "push": lambda: model_ops.push(listing, body),
            UNKNOWN: lambda: _sent_on(request.origin),
        }
        if kind not in simple:
            raise NotFound("There is nothing like that to ask for.")
        return simple[kind]()

    def encoder(
        self, request: Request, *, response_id: str, created: int, progress: str
    ) -> OllamaEncoder | StageEncoder:
        """An encoder for one reply. While a request waits, there is no progress in this protocol."""
        if isinstance(request, ModelOperation):
            return StageEncoder(request)
        return OllamaEncoder(request, response_id=response_id, created=created)

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete answer."""
        return error_response(error, operation)


def _sent_on(origin: Origin) -> WireResponse:
    found = redirect_target(origin.method, origin.path)
    if found is None:
        raise NotFound(f"there is no {origin.path[:200]} here")
    status, path = found
    location = f"{path}?{origin.query}" if origin.query else path
    return WireResponse(status=status, media_type=PLAIN, headers=(("Location", location),))
