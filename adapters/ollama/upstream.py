"""Ollama's protocol as backends speak it: builds requests and parsers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.adapters import json_body
from hostler.adapters.base import Upstream, WireRequest
from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Conversation,
    EmbedRequest,
    Media,
    Output,
    Request,
    Sampling,
    Text,
    ToolCall,
    output_of,
)
from hostler.adapters.degrade import unsupported
from hostler.adapters.embedding_inputs import count_inputs
from hostler.adapters.errors import BadRequest
from hostler.adapters.ollama import discovery, go_compat
from hostler.adapters.ollama.context import is_packed
from hostler.adapters.ollama.response_parser import OllamaParser
from hostler.adapters.ollama.schema import WIRE
from hostler.adapters.progress_removal import without_progress
from hostler.adapters.remote_models import Discovery, RemoteModel
from hostler.adapters.tool_calls import arguments_object

PATHS = {
    "chat": "/api/chat",
    "generate": "/api/generate",
    "embed": "/api/embed",
    "embeddings": "/api/embeddings",
}
_ANY_OBJECT = b'"json"'
_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}


def operation_of(request: Request) -> str:
    """The operation of this protocol for a canonical request. Raises `BadRequest` if there is none."""
    if isinstance(request, ChatRequest):
        return "chat"
    if isinstance(request, CompletionRequest):
        return "generate"
    if isinstance(request, EmbedRequest):
        return "embeddings" if request.normalize is False and len(request.inputs or ()) == 1 else "embed"
    raise unsupported(request, "the Ollama protocol")


def request_body(request: Request, *, model: str, stream: bool) -> bytes:
    """The body for an expanded request."""
    body: dict[str, Any] = {"model": model}
    if isinstance(request, ChatRequest) and request.conversation is not None:
        conversation = request.conversation
        body["messages"] = _messages(conversation)
        body |= _tools(conversation) | _output(request.output, stream=stream)
        if conversation.thinking is not None:
            level = conversation.thinking
            body["think"] = _LEVELS.get(level, "medium") if isinstance(level, str) else level
        sampling = conversation.sampling
    elif isinstance(request, CompletionRequest) and request.prompt is not None:
        body["prompt"] = request.prompt
        body |= {"raw": True} if request.suffix is None else {"suffix": request.suffix}
        body |= _output(request.output, stream=stream)
        sampling = request.sampling or Sampling()
    elif isinstance(request, EmbedRequest) and request.inputs is not None:
        body |= {"prompt": request.inputs[0]} if operation_of(request) == "embeddings" else {"input": request.inputs}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        sampling = Sampling()
    else:
        operation_of(request)
        raise ValueError("the request must be expanded before it is encoded in another protocol")
    options = _options(sampling)
    if options:
        body["options"] = options
    if request.keep_alive_s is not None:
        body["keep_alive"] = -1 if math.isinf(request.keep_alive_s) else request.keep_alive_s
    return go_compat.encode_json(body)


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    encoded: list[dict[str, Any]] = []
    called: dict[str, str] = {}
    for message in conversation.messages:
        role = "system" if message.role == "developer" else message.role
        text = "".join(part.text for part in message.parts if isinstance(part, Text))
        body: dict[str, Any] = {"role": role, "content": text}
        images = [_data(part) for part in message.parts if isinstance(part, Media)]
        if images:
            body["images"] = images
        if message.reasoning:
            body["thinking"] = message.reasoning
        if message.tool_calls:
            body["tool_calls"] = [_call(index, call) for index, call in enumerate(message.tool_calls)]
            called |= {call.id: call.name for call in message.tool_calls if call.id and call.name}
        if role == "tool":
            body |= _result_reference(message, called)
        encoded.append(body)
    return encoded


def _result_reference(message: ChatMessage, called: dict[str, str]) -> dict[str, str]:
    """The call that a result belongs to: by the function's name, in newer versions also by id."""
    reference: dict[str, str] = {}
    name = message.name or called.get(message.tool_call_id or "")
    if name:
        reference["tool_name"] = name
    if message.tool_call_id:
        reference["tool_call_id"] = message.tool_call_id
    return reference


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    arguments = arguments_object(call.arguments)
    body: dict[str, Any] = {"function": {"index": index, "name": call.name, "arguments": arguments}}
    return {"id": call.id, **body} if call.id else body


def _data(part: Media) -> str:
    if part.data is None:
        raise BadRequest("The backend of this model supports images as data only, not as URLs.", param="messages")
    return part.data


def _tools(conversation: Conversation) -> dict[str, Any]:
    if not conversation.tools or conversation.tool_choice == "none":
        return {}
    tools = []
    # The server has no choices: of a tool that has to be called, it gets no other.
    named = [tool for tool in conversation.tools if tool.name == conversation.tool_choice]
    for tool in named or conversation.tools:
        function: dict[str, Any] = {"name": tool.name, "description": tool.description or ""}
        # A missing object is an error to the server.
        function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
        tools.append({"type": "function", "function": function})
    return {"tools": tools}


def _output(output: Output, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": stream}
    if output.schema is not None:
        body["format"] = "json" if bytes(output.schema) == _ANY_OBJECT else output.schema
    if output.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": min(output.logprobs, 20)}
    return body


def _options(sampling: Sampling) -> dict[str, Any]:
    options = sampling.values(assumed=True)
    if "max_tokens" in options:
        options["num_predict"] = options.pop("max_tokens")
    return options


class OllamaUpstream(Upstream):
    """A request in this protocol is forwarded, with `model` replaced and `stream` set if it differs."""

    wire = WIRE

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        origin = request.origin
        if origin.wire != WIRE:
            body = request_body(request, model=model, stream=stream)
            return WireRequest(path=PATHS[operation_of(request)], body=body)
        if origin.operation not in PATHS:
            raise unsupported(request, "the Ollama protocol")
        changes: dict[str, bytes | None] = {"model": msgspec.json.encode(model)}
        if isinstance(request, ChatRequest | CompletionRequest) and stream != request.output.stream:
            changes["stream"] = msgspec.json.encode(stream)
        body = without_progress(origin.body) if origin.operation == "chat" else origin.body
        return WireRequest(path=PATHS[origin.operation], body=_patched(body, changes))

    def parser(self, request: Request, *, fields: bool) -> OllamaParser:
        """Fields are always decoded."""
        origin = request.origin
        operation = origin.operation if origin.wire == WIRE else operation_of(request)
        inputs = count_inputs(origin.body) if operation == "embed" else 0
        return OllamaParser(operation, streamed=output_of(request).stream, inputs=inputs)

    def discover(self, known: Mapping[str, RemoteModel]) -> Discovery:
        return discovery.discover(known)


def _patched(body: bytes, changes: dict[str, bytes | None]) -> bytes:
    """The body with these members. One that only Go can decode is encoded anew."""
    fields = go_compat.decode_fields(body, "Request")
    if is_packed(fields.array("context", "[]int")):
        # A real Ollama would take a packed conversation for tokens.
        changes = {**changes, "context": None}
    try:
        members = json_body.JsonBody(body).members
        if all(name == name.lower() for name in members):
            return json_body.patch(body, changes, members)
    except BadRequest:
        pass
    members = fields.all() | {name: msgspec.Raw(value or b"null") for name, value in changes.items()}
    return go_compat.encode_json(members)
