"""LM Studio's protocol as clients speak it. What generates is handed to OpenAI's adapter as it is."""

from __future__ import annotations

import msgspec

from hostler import __version__
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.degrade import without_thinking
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError, NotFound
from hostler.adapters.json_body import JsonBody
from hostler.adapters.lmstudio import chat, models
from hostler.adapters.lmstudio.encoder import ChatEncoder, FiguresEncoder
from hostler.adapters.lmstudio.errors import error_response
from hostler.adapters.lmstudio.operations import DELEGATED, NEWER, OPERATIONS
from hostler.adapters.model_list import ModelList
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.request_model import model_outside_body
from hostler.adapters.types import (
    ChatRequest,
    Chunk,
    CompletionRequest,
    Control,
    ModelInfoRequest,
    Request,
)
from hostler.profiles.presets import Preset

WIRE = "lmstudio"


class LMStudioAdapter(Adapter):
    """The adapter for clients of LM Studio's own interface, Hermes among them."""

    name = WIRE
    operations = OPERATIONS

    def __init__(self) -> None:
        self._openai = OpenAIAdapter()

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request. To load a model is a question here: it is answered at once, and nothing is loaded."""
        delegated = DELEGATED.get(operation.path.rstrip("/"))
        if delegated is not None:
            return self._openai.decode(Operation(name=delegated, path=f"/v1/{delegated}"), incoming)
        name = operation.name
        origin = self.origin(operation, incoming)
        if name == "say":
            document = JsonBody(incoming.body)
            model = document.text("model") or model_outside_body(incoming)
            return chat.decode(origin, document, model)
        if name == "load":
            return ModelInfoRequest(origin=origin, kind=name, model=_needed(incoming, "model"))
        if name == "unload":
            return Control(origin=origin, kind="unload", model=_needed(incoming, "instance_id", "model"))
        asked = incoming.path_params.get("id", "").rstrip("/") if name == "entry" else None
        return ModelInfoRequest(origin=origin, kind=name, model=asked)

    def expand(self, request: Request) -> Request:
        """The request with everything decoded that a backend of another protocol needs."""
        return request if request.origin.wire == WIRE else self._openai.expand(request)

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """What OpenAI's adapter knows of other ways to say it."""
        if request.origin.wire == WIRE:
            return without_thinking(request, rejected)
        return self._openai.amend(request, rejected)

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        """The request as it is when it is asked of a model that was made of another one."""
        return request if request.origin.wire == WIRE else self._openai.apply_preset(request, preset)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        """The lists, one model, or that it is loaded."""
        kind = request.kind
        if kind == "models":
            return models.native(listing)
        if kind == "list":
            return models.older(listing)
        if kind == "entry":
            return models.older_entry(listing, request.model or "")
        if kind == "load":
            asked = request.model or ""
            return models.loaded(models.find(listing, asked), asked)
        raise NotFound("There is nothing like that to ask for.")

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        """An encoder for one reply."""
        if isinstance(request, Control):
            return _Unloaded(request.model)
        if isinstance(request, ChatRequest) and request.origin.wire == WIRE:
            return ChatEncoder(request, progress=progress)
        encoder = self._openai.encoder(request, response_id=response_id, created=created, progress=progress)
        if isinstance(request, ChatRequest | CompletionRequest):
            return FiguresEncoder(encoder, version=__version__)
        return encoder

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete answer, on the older paths in OpenAI's words."""
        if operation is not None and operation.path.startswith(NEWER):
            return error_response(error)
        return self._openai.error_response(error, operation)


class _Unloaded(Encoder):
    """The answer to an order that has been carried out."""

    def __init__(self, instance: str) -> None:
        self._instance = instance

    def encode(self, chunk: Chunk) -> bytes:
        """No engine says anything to this."""
        return b""

    def finish(self) -> bytes:
        """What was unloaded."""
        return msgspec.json.encode({"instance_id": self._instance})


def _needed(incoming: Incoming, *names: str) -> str:
    document = JsonBody(incoming.body)
    for name in names:
        value = document.text(name)
        if value:
            return value
    named = model_outside_body(incoming)
    if named is not None:
        return named
    raise BadRequest(f"`{names[0]}` is missing.", param=names[0])
