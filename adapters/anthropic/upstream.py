"""Anthropic's protocol as backends speak it: the request to send, and the reader for its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from hostler.adapters import json_body
from hostler.adapters.anthropic.messages import without_unsigned
from hostler.adapters.anthropic.operations import COUNT, HEADER, MESSAGES, PATHS
from hostler.adapters.anthropic.parser import AnthropicParser
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import Upstream, WireRequest
from hostler.adapters.degrade import unsupported
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.types import (
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

# The protocol demands a limit; this one is what its smaller servers take if there is none.
_MAX_TOKENS = 4096
_LEAST_BUDGET = 1024
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768}
_USUAL = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]")
_ANY_OBJECT = b'"json"'


def request_body(request: ChatRequest | CountRequest, *, model: str, stream: bool) -> bytes:
    """The body for a backend that calls the model `model`. The request must be expanded."""
    conversation = request.conversation
    if conversation is None:
        raise ValueError("the request must be expanded before it is written in another protocol")
    system, turns = _turns(conversation.messages)
    body: dict[str, Any] = {"model": model, "messages": turns}
    if system:
        body["system"] = system
    body |= _tools(conversation)
    if isinstance(request, ChatRequest):
        body |= _settings(conversation, body.get("tool_choice")) | _output(request.output) | {"stream": stream}
    return msgspec.json.encode(body)


def _turns(messages: Sequence[ChatMessage]) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt, and turns of alternating sides: results of tools are a part of the user's turn here."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    open_calls: list[str] = []
    count = 0
    for message in messages:
        if message.role in ("system", "developer"):
            system.append("".join(part.text for part in message.parts if isinstance(part, Text)))
            continue
        blocks = [block for part in message.parts for block in _blocks(part)]
        side = "assistant" if message.role == "assistant" else "user"
        for call in message.tool_calls:
            count += 1
            call_id = _id(call.id or f"call_{count}")
            open_calls.append(call_id)
            blocks.append({"type": "tool_use", "id": call_id, "name": call.name or "", "input": _input(call.arguments)})
        if message.role == "tool":
            call_id = _id(message.tool_call_id) if message.tool_call_id else (open_calls or ["call_0"])[0]
            if call_id in open_calls:
                open_calls.remove(call_id)
            blocks = [{"type": "tool_result", "tool_use_id": call_id, "content": blocks}]
        if not blocks:
            continue
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": side, "content": blocks})
    if turns and turns[-1]["role"] == "assistant" and turns[-1]["content"][-1]["type"] == "text":
        # An answer that is to be continued must not end with a space.
        last = turns[-1]["content"][-1]
        last["text"] = last["text"].rstrip()
    return "\n\n".join(text for text in system if text.strip()), turns


def _blocks(part: Part) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        return [{"type": "text", "text": part.text}] if part.text.strip() else []
    return [{"type": "image", "source": _source(part)}]


def _source(media: Media) -> dict[str, Any]:
    if media.kind != "image":
        raise BadRequest("The backend of this model does not take sound.", param="messages")
    if media.url is not None:
        return {"type": "url", "url": media.url}
    return {"type": "base64", "media_type": media.mime or "image/png", "data": media.data or ""}


def _input(arguments: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except NOT_JSON:
        return {}


def _id(given: str) -> str:
    return _NOT_IN_IDS.sub("_", given)


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
    written: dict[str, Any] = {"name": tool.name, "input_schema": tool.parameters or {"type": "object"}}
    if tool.description is not None:
        written["description"] = tool.description
    return written


def _settings(conversation: Conversation, choice: dict[str, Any] | None) -> dict[str, Any]:
    sampling = conversation.sampling
    limit = sampling.max_tokens if sampling.max_tokens is not None and sampling.max_tokens > 0 else _MAX_TOKENS
    body: dict[str, Any] = {"max_tokens": limit}
    stop = [word for word in sampling.stop or () if word.strip()]
    if stop:
        body["stop_sequences"] = stop
    budget = _budget(conversation, limit, choice)
    if budget:
        # Thinking allows no other way of drawing tokens.
        return {**body, "thinking": {"type": "enabled", "budget_tokens": budget}}
    # Newer models take none of these, and no model of today both of the first two: they get what was asked for, and not
    # what every client of Ollama's sends along.
    if sampling.temperature is not None and sampling.temperature != _USUAL["temperature"]:
        body["temperature"] = min(max(sampling.temperature, 0.0), 1.0)
    elif sampling.top_p is not None and sampling.top_p != _USUAL["top_p"]:
        body["top_p"] = sampling.top_p
    if sampling.top_k is not None and sampling.top_k > 0 and sampling.top_k != _USUAL["top_k"]:
        body["top_k"] = sampling.top_k
    return body


def _budget(conversation: Conversation, limit: int, choice: dict[str, Any] | None) -> int:
    """How many tokens the model may think with, 0 for none.

    It may not when it is made to use a tool, nor right after its own call of one: what it thought before that call
    would have to be shown to it with its signature, which other protocols do not carry.
    """
    forced = choice is not None and choice["type"] in ("any", "tool")
    after_call = bool(conversation.messages) and conversation.messages[-1].role in ("tool", "assistant")
    if not conversation.thinking or forced or after_call or limit <= _LEAST_BUDGET:
        return 0
    wanted = _BUDGETS.get(conversation.thinking, 4096) if isinstance(conversation.thinking, str) else 4096
    return min(wanted, max(limit // 2, _LEAST_BUDGET))


def _output(output: Output) -> dict[str, Any]:
    if output.schema is None or bytes(output.schema) == _ANY_OBJECT:
        return {}
    return {"output_config": {"format": {"type": "json_schema", "schema": output.schema}}}


_VERSION = (HEADER, "2023-06-01")


class AnthropicUpstream(Upstream):
    """Builds requests for a backend of this protocol, and readers for its answers.

    A request that came in this protocol is sent on as it is, with `model` replaced and its own protocol headers: what
    such a server alone knows (signed thoughts, caching, tools that it runs itself) stays whole. Only thoughts without a
    signature, of other models that answered before, are left out. A request of another protocol must be expanded; it is
    written anew.
    """

    wire = WIRE

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """The request for a backend that calls the model `model`. Whole answers come whole: they need no folding."""
        if not isinstance(request, ChatRequest | CountRequest):
            raise unsupported(request, "the Anthropic protocol")
        path = PATHS[COUNT if isinstance(request, CountRequest) else MESSAGES]
        origin = request.origin
        if origin.wire != WIRE:
            body = request_body(request, model=model, stream=stream)
            return WireRequest(path=path, body=body, headers=(_VERSION,))
        headers = origin.headers if any(name == HEADER for name, _ in origin.headers) else (_VERSION, *origin.headers)
        return WireRequest(
            path=f"{path}?{origin.query}" if origin.query else path,
            body=json_body.patch(without_unsigned(origin.body), {"model": msgspec.json.encode(model)}),
            headers=headers,
        )

    def parser(self, request: Request, *, fields: bool) -> AnthropicParser:
        """A reader for the answer; `fields` asks for decoded fields instead of the bytes."""
        return AnthropicParser(fields=fields or isinstance(request, CountRequest))
