"""LM Studio's protocol as clients speak it. Inference on OpenAI's paths is delegated to OpenAI's adapter."""

from __future__ import annotations

from collections.abc import Sequence

from hostler import __version__
from hostler.adapters.base import Adapter, Encoder, Incoming, Operation, WireResponse
from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    Download,
    FindDownloads,
    LoadRequest,
    ModelInfoRequest,
    Request,
    StartDownload,
)
from hostler.adapters.degrade import without_thinking
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError
from hostler.adapters.json_body import JsonBody
from hostler.adapters.lmstudio import chat, downloads, models
from hostler.adapters.lmstudio.encoder import LMStudioChatEncoder, StatsEncoder, UnloadEncoder
from hostler.adapters.lmstudio.errors import error_response
from hostler.adapters.lmstudio.operations import OPENAI_PATHS, OPERATIONS, V1_PREFIX
from hostler.adapters.model_list import ModelList
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.requested_model import model_outside_body
from hostler.profiles.presets import Preset

WIRE = "lmstudio"


class LMStudioAdapter(Adapter):
    """The adapter for clients of LM Studio's own API, Hermes among them."""

    name = WIRE
    operations = OPERATIONS

    def __init__(self) -> None:
        self._openai = OpenAIAdapter()

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The request. Loading is a request for information here: it is answered at once, and nothing is loaded."""
        openai_operation = OPENAI_PATHS.get(operation.path.rstrip("/"))
        if openai_operation is not None:
            delegated = Operation(name=openai_operation, path=f"/v1/{openai_operation}")
            return self._openai.decode(delegated, incoming)
        name = operation.name
        origin = self.origin(operation, incoming)
        if name == "chat_v1":
            body = JsonBody(incoming.body)
            return chat.decode_chat(origin, body, body.text("model") or model_outside_body(incoming))
        if name == "download":
            return downloads.decode_download(origin, JsonBody(incoming.body), _required_model(incoming, "model"))
        if name == "download_status":
            return FindDownloads(origin=origin, id=incoming.path_params.get("id"))
        if name == "load":
            return ModelInfoRequest(origin=origin, kind=name, model=_required_model(incoming, "model"))
        if name == "unload":
            return LoadRequest(origin=origin, kind="unload", model=_required_model(incoming, "instance_id", "model"))
        model = incoming.path_params.get("id", "").rstrip("/") if name == "entry" else None
        return ModelInfoRequest(origin=origin, kind=name, model=model)

    def expand(self, request: Request) -> Request:
        return request if request.origin.wire == WIRE else self._openai.expand(request)

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        return request if request.origin.wire == WIRE else self._openai.apply_preset(request, preset)

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        if request.origin.wire == WIRE:
            return without_thinking(request, rejected)
        return self._openai.amend(request, rejected)

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        name = request.model or ""
        if request.kind == "models":
            return models.list_models(listing)
        if request.kind == "list":
            return models.list_models_v0(listing)
        if request.kind == "entry":
            return models.show_model_v0(listing, name)
        if request.kind == "load":
            return models.loaded(models.find_card(listing, name), name)
        return super().model_info(request, listing)

    def downloads_info(self, request: StartDownload | FindDownloads, found: Sequence[Download]) -> WireResponse:
        return downloads.downloads_info(request, found)

    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        if isinstance(request, LoadRequest):
            return UnloadEncoder(request.model)
        if isinstance(request, ChatRequest) and request.origin.wire == WIRE:
            return LMStudioChatEncoder(request, progress=progress)
        encoder = self._openai.encoder(request, response_id=response_id, created=created, progress=progress)
        if isinstance(request, ChatRequest | CompletionRequest):
            return StatsEncoder(encoder, version=__version__)
        return encoder

    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error in LM Studio's form on paths of the v1 API, else in OpenAI's."""
        if operation is not None and operation.path.startswith(V1_PREFIX):
            return error_response(error)
        return self._openai.error_response(error, operation)


def _required_model(incoming: Incoming, *fields: str) -> str:
    body = JsonBody(incoming.body)
    model = next((value for field in fields if (value := body.text(field))), None) or model_outside_body(incoming)
    if model is None:
        raise BadRequest(f"`{fields[0]}` is missing.", param=fields[0])
    return model
