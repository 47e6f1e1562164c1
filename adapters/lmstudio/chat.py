"""LM Studio's own chat, `POST /api/v1/chat`, decoded: one user message with a system prompt."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.canonical import ChatMessage, ChatRequest, Conversation, Origin, Output, Part, Sampling, Text
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody
from hostler.adapters.openai.chat import decode_body, decode_media

_LEVELS = frozenset({"off", "on", "low", "medium", "high"})


class LMStudioInput(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    content: str | None = None
    data_url: str | None = None


class LMStudioChatBody(msgspec.Struct, frozen=True, kw_only=True):
    input: str | list[LMStudioInput] | None = None
    system_prompt: str | None = None
    previous_response_id: str | None = None
    integrations: list[Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_output_tokens: int | None = None
    reasoning: str | None = None


def decode_chat(origin: Origin, json_body: JsonBody, model: str | None) -> ChatRequest:
    """The request with its conversation. Raises `BadRequest` naming the field that is invalid or not supported."""
    body = decode_body(origin.body, LMStudioChatBody)
    if body.previous_response_id:
        raise BadRequest("Responses are not stored; send the whole conversation.", param="previous_response_id")
    if body.integrations:
        raise BadRequest("Integrations are not supported: they run in LM Studio only.", param="integrations")
    if body.reasoning is not None and body.reasoning not in _LEVELS:
        raise BadRequest(f"`reasoning` must be one of {', '.join(sorted(_LEVELS))}.", param="reasoning")
    if body.input is None:
        raise BadRequest("`input` is missing.", param="input")
    messages = [ChatMessage(role="system", parts=(Text(text=body.system_prompt),))] if body.system_prompt else []
    messages.append(ChatMessage(role="user", parts=_parts(body.input)))
    conversation = Conversation(
        messages=tuple(messages),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            repeat_penalty=body.repeat_penalty,
            max_tokens=body.max_output_tokens,
        ),
        thinking={"off": False, "on": True, None: None}.get(body.reasoning, body.reasoning),
    )
    output = Output(stream=json_body.flag("stream"), include_usage=True)
    return ChatRequest(origin=origin, model=model, output=output, conversation=conversation)


def _parts(content: str | list[LMStudioInput]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(text=content),)
    return tuple(_part(part, f"input[{index}]") for index, part in enumerate(content))


def _part(part: LMStudioInput, param: str) -> Part:
    if part.type in ("text", "message") and part.content is not None:
        return Text(text=part.content)
    if part.type == "image" and part.data_url is not None:
        return decode_media("image", part.data_url)
    raise BadRequest(f"`{param}` must be a text with `content` or an image with `data_url`.", param=param)
