"""Ollama's chat, generate and embed requests as canonical ones: all of the body is understood, nothing is forwarded."""

from __future__ import annotations

import binascii
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hostler.adapters.errors import BadRequest, GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.ollama import requests as memory
from hostler.adapters.ollama.go_compat import Fields, described, keep_alive, quoted, read
from hostler.adapters.ollama.names import named
from hostler.adapters.types import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Control,
    Conversation,
    EmbedRequest,
    Media,
    Origin,
    Output,
    Part,
    Request,
    Sampling,
    Text,
    Tool,
    ToolCall,
)

_MARK = 0x484F53  # "HOS": no model has so large a vocabulary, so tokens of a real Ollama are never taken for ours.
_STEP = 3
_MAX_BYTES = 16 * 1024 * 1024

_Turns = list[tuple[str, str]]


def pack(turns: Sequence[tuple[str, str]]) -> list[int]:
    """The numbers that stand for these turns, each a role and its text."""
    squeezed = zlib.compress(msgspec.json.encode(turns), 6)
    padded = squeezed + bytes(-len(squeezed) % _STEP)
    return [_MARK, len(squeezed), *(int.from_bytes(padded[at : at + _STEP]) for at in range(0, len(padded), _STEP))]


def packed(context: Sequence[object]) -> bool:
    """Whether these numbers were made by `pack`."""
    return len(context) >= 2 and context[0] == _MARK


def unpack(context: Sequence[object]) -> _Turns:
    """The turns that these numbers stand for; none if they come from elsewhere."""
    if not packed(context):
        return []
    length, numbers = context[1], context[2:]
    if not isinstance(length, int) or not 0 <= length <= len(numbers) * _STEP:
        return []
    if not all(isinstance(number, int) and 0 <= number < 1 << 8 * _STEP for number in numbers):
        return []
    squeezed = b"".join(number.to_bytes(_STEP) for number in numbers if isinstance(number, int))[:length]
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(squeezed, _MAX_BYTES)
        return msgspec.json.decode(text, type=_Turns) if reader.eof else []
    except (zlib.error, *NOT_JSON):
        return []


# How a model runs is its profile's business: these are checked and then left alone.
_LAUNCH = ("num_keep", "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")


def sampling(options: Mapping[str, Any]) -> Sampling:
    """The sampling that `options` ask for. Raises an error of status 500, as Ollama does, for a value of a wrong type.

    What is not said is what Ollama sends to its engine then: the engine's own defaults differ (`min_p` is 0.05 there).
    """
    seed, limit = _integer(options, "seed", -1), _integer(options, "num_predict", -1)
    for name in _LAUNCH:
        _integer(options, name, 0)
    if not isinstance(options.get("use_mmap"), bool | None):
        raise _wrong("use_mmap", "of type boolean")
    return Sampling(
        temperature=_number(options, "temperature", 0.8),
        top_p=_number(options, "top_p", 0.9),
        top_k=_integer(options, "top_k", 40),
        min_p=_number(options, "min_p", 0.0),
        typical_p=_number(options, "typical_p", 1.0),
        repeat_penalty=_number(options, "repeat_penalty", 1.0),
        repeat_last_n=_integer(options, "repeat_last_n", 64),
        presence_penalty=_number(options, "presence_penalty", 0.0),
        frequency_penalty=_number(options, "frequency_penalty", 0.0),
        seed=None if seed < 0 else seed,
        max_tokens=None if limit < 0 else limit,
        stop=tuple(_stop(options)) or None,
    )


def _number(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _wrong(name, "of type float32")
    return float(value)


def _integer(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _wrong(name, "of type integer")
    # As large as the engine can read.
    return max(-(2**31), min(int(value), 2**31 - 1 if name != "seed" else 2**32 - 1))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # more digits than any number has
        return False


def _stop(options: Mapping[str, Any]) -> list[str]:
    value = options.get("stop")
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong("stop", "of type array")
    if not all(isinstance(entry, str) for entry in value):
        raise _wrong("stop", "of an array of strings")
    # An empty one would stop every answer before its first word.
    return [entry for entry in value if entry]


def _wrong(name: str, kind: str) -> GatewayError:
    return GatewayError(f'option "{name}" must be {kind}', param="options")


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
    conversation = Conversation(
        messages=tuple(messages),
        tools=tuple(_tool(tool) for tool in fields.each("tools", "Tool")),
        sampling=sampling(fields.mapping("options")),
        thinking=thinking,
    )
    return ChatRequest(origin=origin, model=model, output=output, conversation=conversation, keep_alive_s=stays)


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
    messages = [ChatMessage(role=role, parts=(Text(text=text),)) for role, text in memory.unpack(context)]
    if system:
        messages = [message for message in messages if message.role != "system"]
        messages.insert(0, ChatMessage(role="system", parts=(Text(text=system),)))
    messages.append(ChatMessage(role="user", parts=(*images, Text(text=prompt))))
    conversation = Conversation(messages=tuple(messages), sampling=how, thinking=thinking)
    return ChatRequest(origin=origin, model=model, output=output, conversation=conversation, keep_alive_s=stays)


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


def _message(fields: Fields) -> ChatMessage:
    content = fields.string("content")
    parts: list[Part] = [*_media(fields)]
    if content:
        parts.append(Text(text=content))
    calls = [_call(place, call) for place, call in enumerate(fields.each("tool_calls", "ToolCall"))]
    return ChatMessage(
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
