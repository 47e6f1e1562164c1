"""Ollama's chat, generate and embed requests as canonical ones: all of the body is understood, nothing is forwarded."""

from __future__ import annotations

import binascii
import re
from typing import Any

import msgspec

from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    Control,
    Dialogue,
    EmbedRequest,
    Media,
    Message,
    Origin,
    Output,
    Part,
    Request,
    Text,
    Tool,
    ToolCall,
)
from hostler.adapters.errors import BadRequest, GatewayError
from hostler.adapters.ollama import memory
from hostler.adapters.ollama.gojson import Fields, described, quoted, read
from hostler.adapters.ollama.gotime import keep_alive
from hostler.adapters.ollama.names import named
from hostler.adapters.ollama.options import sampling

_ANY_OBJECT = msgspec.Raw(b'"json"')
_LEVELS = ("high", "medium", "low", "max")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n"
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]")


def chat(origin: Origin) -> Request:
    """A conversation; without messages, an order to load or unload the model."""
    fields = read(origin.body, "ChatRequest")
    output = _output(fields)
    model = named(fields.string("model"), missing="model is required")
    messages = [_message(message) for message in fields.each("messages", "Message")]
    thinking = _thinking(fields)
    stays = keep_alive(fields.any("keep_alive"))
    if not messages:
        return _control(origin, model, stays)
    dialogue = Dialogue(
        messages=tuple(messages),
        tools=tuple(_tool(tool) for tool in fields.each("tools", "Tool")),
        sampling=sampling(fields.mapping("options")),
        thinking=thinking,
    )
    return ChatRequest(origin=origin, model=model, output=output, dialogue=dialogue, keep_alive_s=stays)


def generate(origin: Origin) -> Request:
    """A prompt: a conversation of one turn, so that the model's own template is used, unless it is `raw`."""
    fields = read(origin.body, "GenerateRequest")
    output = _output(fields)
    model = named(fields.string("model"))
    prompt, suffix = fields.string("prompt"), fields.string("suffix")
    system, template = fields.string("system"), fields.string("template")
    context = fields.array("context", "[]int")
    raw = fields.flag("raw") or False
    images = _media(fields)
    thinking = _thinking(fields)
    stays = keep_alive(fields.any("keep_alive"))
    if not prompt and stays == 0:
        return _control(origin, model, stays)
    if raw and (template or system or context):
        raise BadRequest("raw mode does not support template, system, or context")
    if not prompt and not suffix:
        return _control(origin, model, stays)
    if template:
        raise BadRequest("template is not supported: the model's own template is used", param="template")
    how = sampling(fields.mapping("options"))
    if raw or suffix:
        return CompletionRequest(
            origin=origin,
            model=model,
            output=output,
            prompt=prompt,
            suffix=suffix or None,
            sampling=how,
            keep_alive_s=stays,
        )
    messages = [Message(role=role, parts=(Text(text=text),)) for role, text in memory.unpack(context)]
    if system:
        messages = [message for message in messages if message.role != "system"]
        messages.insert(0, Message(role="system", parts=(Text(text=system),)))
    messages.append(Message(role="user", parts=(*images, Text(text=prompt))))
    dialogue = Dialogue(messages=tuple(messages), sampling=how, thinking=thinking)
    return ChatRequest(origin=origin, model=model, output=output, dialogue=dialogue, keep_alive_s=stays)


def embed(origin: Origin) -> Request:
    """Texts for vectors of length 1; without a text, an order to load the model."""
    fields = read(origin.body, "EmbedRequest")
    model = named(fields.string("model"))
    given = fields.any("input")
    inputs = [] if given is None or given == "" else [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise BadRequest("invalid input type", param="input")
    fields.flag("truncate")
    sampling(fields.mapping("options"))
    stays = keep_alive(fields.any("keep_alive"))
    if not inputs:
        return Control(origin=origin, kind="load", model=model, keep_alive_s=stays)
    return EmbedRequest(
        origin=origin,
        model=model,
        inputs=tuple(inputs),
        dimensions=fields.integer("dimensions") or None,
        keep_alive_s=stays,
    )


def embeddings(origin: Origin) -> Request:
    """One text for one vector as the model gives it; without a text, an order to load the model."""
    fields = read(origin.body, "EmbeddingRequest")
    model = named(fields.string("model"), missing="model is required")
    prompt = fields.string("prompt")
    sampling(fields.mapping("options"))
    stays = keep_alive(fields.any("keep_alive"))
    if not prompt:
        return Control(origin=origin, kind="load", model=model, keep_alive_s=stays)
    return EmbedRequest(origin=origin, model=model, inputs=(prompt,), normalize=False, keep_alive_s=stays)


def alternatives(body: bytes) -> int:
    """How many alternatives to each token the client wants to see."""
    return read(body, "ChatRequest").integer("top_logprobs")


def _control(origin: Origin, model: str, stays: float | None) -> Control:
    return Control(origin=origin, kind="unload" if stays == 0 else "load", model=model, keep_alive_s=stays)


def _output(fields: Fields) -> Output:
    top = fields.integer("top_logprobs")
    if not 0 <= top <= 20:
        raise BadRequest("top_logprobs must be between 0 and 20", param="top_logprobs")
    fields.flag("truncate")
    fields.flag("shift")
    return Output(
        stream=fields.flag("stream") is not False,
        include_usage=True,
        schema=_schema(fields.any("format")),
        # An engine that is asked for none tells no log probabilities at all.
        logprobs=max(top, 1) if fields.flag("logprobs") else None,
    )


def _schema(wanted: Any) -> msgspec.Raw | None:
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return _ANY_OBJECT
    if isinstance(wanted, dict):
        return msgspec.Raw(msgspec.json.encode(wanted))
    said = quoted(msgspec.json.encode(wanted).decode())
    raise GatewayError(f'invalid format: {said}; expected "json" or a valid JSON Schema object', param="format")


def _thinking(fields: Fields) -> bool | str | None:
    wanted = fields.any("think")
    if wanted is None or isinstance(wanted, bool):
        return wanted
    if isinstance(wanted, str):
        if wanted in _LEVELS:
            return wanted
        raise BadRequest(
            f'invalid think value: {quoted(wanted)} (must be "high", "medium", "low", "max", true, or false)',
            param="think",
        )
    raise BadRequest(
        f'think must be a boolean or string ("high", "medium", "low", "max", true, or false), got {described(wanted)}',
        param="think",
    )


def _message(fields: Fields) -> Message:
    content = fields.string("content")
    parts: list[Part] = [*_media(fields)]
    if content:
        parts.append(Text(text=content))
    calls = [_call(place, call) for place, call in enumerate(fields.each("tool_calls", "ToolCall"))]
    return Message(
        role=fields.string("role").lower(),
        parts=tuple(parts),
        reasoning=fields.string("thinking") or None,
        tool_calls=tuple(calls),
        tool_call_id=fields.string("tool_call_id") or None,
        name=fields.string("tool_name") or None,
    )


def _call(place: int, call: Fields) -> ToolCall:
    function = call.inner("function", "ToolCallFunction")
    arguments = function.mapping("arguments", "api.ToolCallFunctionArguments")
    return ToolCall(
        index=place,
        id=call.string("id") or None,
        name=function.string("name"),
        arguments=msgspec.json.encode(arguments).decode(),
    )


def _tool(fields: Fields) -> Tool:
    function = fields.inner("function", "ToolFunction")
    parameters = function.mapping("parameters", "api.ToolFunctionParameters")
    return Tool(
        name=function.string("name"),
        description=function.string("description") or None,
        parameters=msgspec.Raw(msgspec.json.encode(parameters)) if parameters else None,
    )


def _media(fields: Fields) -> list[Media]:
    return [_medium(data) for data in fields.strings("images")]


def _medium(data: str) -> Media:
    # Deleting what may be there is much faster than searching for what may not.
    if data.encode("ascii", "replace").translate(None, _BASE64):
        stray = _NOT_BASE64.search(data)
        raise BadRequest(f"illegal base64 data at input byte {stray.start() if stray else 0}", param="images")
    if "\n" in data or "\r" in data:
        data = data.replace("\n", "").replace("\r", "")
    try:
        start = binascii.a2b_base64(data[:48])
    except binascii.Error:
        start = b""
    if len(data) % 4 or not start:
        raise BadRequest(f"illegal base64 data at input byte {len(data)}", param="images")
    mime = _mime(start)
    return Media(kind="audio" if mime.startswith("audio/") else "image", data=data, mime=mime)


def _mime(start: bytes) -> str:
    """What the first bytes say a file is."""
    if start.startswith(b"RIFF") and start[8:12] == b"WAVE":
        return "audio/wav"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image/webp"
    if start.startswith(b"ID3") or (start[:1] == b"\xff" and start[1:2] in (b"\xfb", b"\xf3", b"\xf2")):
        return "audio/mp3"
    if start.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if start.startswith(b"GIF8"):
        return "image/gif"
    if start.startswith(b"BM"):
        return "image/bmp"
    return "image/png"
