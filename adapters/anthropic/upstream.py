"""Anthropic's protocol as backends speak it: builds requests and parsers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hostler.adapters import json_body
from hostler.adapters.anthropic import discovery
from hostler.adapters.anthropic.operations import COUNT, HEADER, MESSAGES, PATHS, VERSION
from hostler.adapters.anthropic.response_parser import AnthropicParser
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import Upstream, WireRequest
from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    Conversation,
    CountRequest,
    Media,
    Output,
    Part,
    Request,
    Text,
    Tool,
)
from hostler.adapters.degrade import unsupported
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.progress_removal import without_progress
from hostler.adapters.remote_models import Discovery, RemoteModel
from hostler.adapters.tool_calls import arguments_object

# The protocol requires a limit; this one works with the smallest models.
_MAX_TOKENS = 4096
_MIN_BUDGET = 1024
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768, "max": 32768}
_EFFORTS = {"minimal": "low", **{level: level for level in ("low", "medium", "high", "xhigh", "max")}}
_INVALID_ID_CHARS = re.compile(r"[^A-Za-z0-9_-]")
_ANY_OBJECT = b'"json"'
# This protocol has schemas only, and they have to name every field.
_ONLY_AN_OBJECT = "Answer with one JSON object and nothing else: no other text, no code fence."
# Images of other spellings of their type are rejected.
_USUAL_TYPES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}


_UNSIGNED = re.compile(rb'"signature"\s*:\s*(?:""|null)')
_decode_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_blocks = msgspec.json.Decoder(list[msgspec.Raw]).decode


class SignedBlock(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    signature: str | None = None


_decode_schema = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_signed = msgspec.json.Decoder(SignedBlock).decode


class AnthropicUpstream(Upstream):
    """A request in this protocol is forwarded with its protocol headers: `model` is replaced, and thinking blocks
    without a signature, which come from other models, are removed. Signed thinking, caching and server-side tools stay
    intact.
    """

    wire = WIRE
    headers = (VERSION,)

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """A forwarded request keeps its own `stream`: whole responses come whole."""
        if not isinstance(request, ChatRequest | CountRequest):
            raise unsupported(request, "the Anthropic protocol")
        path = PATHS[COUNT if isinstance(request, CountRequest) else MESSAGES]
        origin = request.origin
        if origin.wire != WIRE:
            body = request_body(request, model=model, stream=stream)
            return WireRequest(path=path, body=body, headers=(VERSION,))
        headers = origin.headers if any(name == HEADER for name, _ in origin.headers) else (VERSION, *origin.headers)
        body = without_unsigned(without_progress(origin.body))
        return WireRequest(
            path=f"{path}?{origin.query}" if origin.query else path,
            body=json_body.patch(body, {"model": msgspec.json.encode(model)}),
            headers=headers,
        )

    def parser(self, request: Request, *, fields: bool) -> AnthropicParser:
        return AnthropicParser(fields=fields or isinstance(request, CountRequest))

    def discover(self, known: Mapping[str, RemoteModel]) -> Discovery:
        return discovery.discover()


def request_body(request: ChatRequest | CountRequest, *, model: str, stream: bool) -> bytes:
    """The body for an expanded request."""
    conversation = request.conversation
    if conversation is None:
        raise ValueError("the request must be expanded before it is encoded in another protocol")
    system, messages = _messages(conversation.messages)
    if isinstance(request, ChatRequest) and _wants_any_object(request.output):
        system = f"{system}\n\n{_ONLY_AN_OBJECT}".lstrip()
    if not messages and system:
        # There must be a message, and a conversation of another protocol may have instructions only.
        system, messages = "", [{"role": "user", "content": [{"type": "text", "text": system}]}]
    body: dict[str, Any] = {"model": model, "messages": messages}
    if system:
        body["system"] = system
    body |= _tools(conversation)
    if isinstance(request, ChatRequest):
        body |= _settings(conversation, body.get("tool_choice")) | {"stream": stream}
        if config := _output_config(request.output, conversation, thinks="thinking" in body):
            body["output_config"] = config
    return msgspec.json.encode(body)


def _messages(messages: Sequence[ChatMessage]) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt, and messages of alternating roles: results of tools are part of the user's messages here."""
    system: list[str] = []
    merged: list[dict[str, Any]] = []
    open_calls: list[str] = []
    count = 0
    for message in messages:
        if message.role in ("system", "developer"):
            system.append("".join(part.text for part in message.parts if isinstance(part, Text)))
            continue
        blocks = [block for part in message.parts for block in _blocks(part)]
        role = "assistant" if message.role == "assistant" else "user"
        for call in message.tool_calls:
            count += 1
            call_id = _id(call.id or f"call_{count}")
            open_calls.append(call_id)
            blocks.append(
                {"type": "tool_use", "id": call_id, "name": call.name or "", "input": arguments_object(call.arguments)}
            )
        if message.role == "tool":
            call_id = _id(message.tool_call_id) if message.tool_call_id else (open_calls or ["call_0"])[0]
            if call_id in open_calls:
                open_calls.remove(call_id)
            blocks = [{"type": "tool_result", "tool_use_id": call_id, "content": blocks}]
        if not blocks:
            continue
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += blocks
        else:
            merged.append({"role": role, "content": blocks})
    if merged and merged[-1]["role"] == "assistant" and merged[-1]["content"][-1]["type"] == "text":
        # A response that is to be continued must not end with a space.
        last = merged[-1]["content"][-1]
        last["text"] = last["text"].rstrip()
    return "\n\n".join(text for text in system if text.strip()), merged


def _blocks(part: Part) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        return [{"type": "text", "text": part.text}] if part.text.strip() else []
    return [{"type": "image", "source": _source(part)}]


def _source(media: Media) -> dict[str, Any]:
    if media.kind != "image":
        raise BadRequest("The backend of this model does not support audio.", param="messages")
    if media.url is not None:
        return {"type": "url", "url": media.url}
    mime = media.mime or "image/png"
    return {"type": "base64", "media_type": _USUAL_TYPES.get(mime.lower(), mime), "data": media.data or ""}


def _id(call_id: str) -> str:
    return _INVALID_ID_CHARS.sub("_", call_id)


def _tools(conversation: Conversation) -> dict[str, Any]:
    if not conversation.tools:
        return {}
    choice: dict[str, Any] = {"type": "auto"}
    if conversation.tool_choice in ("auto", "none"):
        choice = {"type": conversation.tool_choice}
    elif conversation.tool_choice == "required":
        choice = {"type": "any"}
    elif conversation.tool_choice is not None:
        choice = {"type": "tool", "name": conversation.tool_choice}
    if conversation.parallel_tool_calls is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tools": [_tool(tool) for tool in conversation.tools], "tool_choice": choice}


def _tool(tool: Tool) -> dict[str, Any]:
    body: dict[str, Any] = {"name": tool.name, "input_schema": _input_schema(tool.parameters)}
    if tool.description is not None:
        body["description"] = tool.description
    if tool.strict:
        body["strict"] = True
    return body


def _input_schema(parameters: msgspec.Raw | None) -> Any:
    """The schema of a tool's input, whose type is required here; other protocols take it for granted."""
    try:
        members: dict[str, Any] = {} if parameters is None else _decode_schema(parameters)
    except NOT_JSON:
        raise BadRequest("The parameters of a tool must be a JSON Schema, an object.", param="tools") from None
    return parameters if "type" in members else {"type": "object", **members}


def _settings(conversation: Conversation, choice: dict[str, Any] | None) -> dict[str, Any]:
    sampling = conversation.sampling
    limit = sampling.max_tokens if sampling.max_tokens is not None and sampling.max_tokens > 0 else _MAX_TOKENS
    body: dict[str, Any] = {"max_tokens": limit}
    stop = [sequence for sequence in sampling.stop or () if sequence.strip()]
    if stop:
        body["stop_sequences"] = stop
    budget = _budget(conversation, limit, choice)
    if budget:
        # Sampling parameters are not allowed together with thinking. Without `display`, newer models think in silence.
        adaptive = {"type": "adaptive", "display": "summarized"}
        by_budget = {"type": "enabled", "budget_tokens": budget}
        return {**body, "thinking": adaptive if conversation.adaptive_thinking else by_budget}
    # Newer models accept none of these, current ones not both of the first two: only what the client has set is passed on.
    given = sampling.values(assumed=False)
    if "temperature" in given:
        body["temperature"] = min(max(given["temperature"], 0.0), 1.0)
    elif "top_p" in given:
        body["top_p"] = given["top_p"]
    if given.get("top_k", 0) > 0:
        body["top_k"] = given["top_k"]
    return body


def _budget(conversation: Conversation, limit: int, choice: dict[str, Any] | None) -> int:
    """The thinking budget in tokens, 0 for none.

    Thinking is not allowed with a forced tool, nor right after a tool call: the thinking before that call would have to
    be sent back with its signature, which other protocols do not carry.
    """
    forced = choice is not None and choice["type"] in ("any", "tool")
    after_call = bool(conversation.messages) and conversation.messages[-1].role in ("tool", "assistant")
    if not conversation.thinking or forced or after_call or limit <= _MIN_BUDGET:
        return 0
    wanted = _BUDGETS.get(conversation.thinking, 4096) if isinstance(conversation.thinking, str) else 4096
    return min(wanted, max(limit // 2, _MIN_BUDGET))


def _wants_any_object(output: Output) -> bool:
    return output.schema is not None and bytes(output.schema) == _ANY_OBJECT


def _output_config(output: Output, conversation: Conversation, *, thinks: bool) -> dict[str, Any]:
    """The form of the response, and how much effort it takes where there is no budget."""
    config: dict[str, Any] = {}
    if thinks and conversation.adaptive_thinking and isinstance(conversation.thinking, str):
        config["effort"] = _EFFORTS.get(conversation.thinking, "medium")
    if output.schema is not None and not _wants_any_object(output):
        config["format"] = {"type": "json_schema", "schema": output.schema}
    return config


def without_unsigned(body: bytes) -> bytes:
    """The body without unsigned thinking blocks, and without messages that had nothing else.

    Returns the same object if there are none, which one search in the bytes finds out.
    """
    if not _UNSIGNED.search(body):
        return body
    try:
        messages = _decode_messages(json_body.members(body)["messages"])
    except (msgspec.ValidationError, KeyError):
        return body
    kept: list[dict[str, msgspec.Raw]] = []
    changed = False
    for message in messages:
        content = bytes(message.get("content", b""))
        if not content.startswith(b"["):
            kept.append(message)
            continue
        blocks = _decode_blocks(content)
        signed = [block for block in blocks if not _is_unsigned(block)]
        if len(signed) == len(blocks):
            kept.append(message)
            continue
        changed = True
        if signed:
            kept.append({**message, "content": msgspec.Raw(msgspec.json.encode(signed))})
    return json_body.patch(body, {"messages": msgspec.json.encode(kept)}) if changed else body


def _is_unsigned(raw: msgspec.Raw) -> bool:
    try:
        block = _decode_signed(raw)
    except msgspec.ValidationError:
        return False
    return block.type == "thinking" and not block.signature
