"""Ollama's chat, generate and embed requests, fully decoded."""

from __future__ import annotations

import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Conversation,
    EmbedRequest,
    LoadRequest,
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
from hostler.adapters.errors import BadRequest, GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.model_list import ModelCard
from hostler.adapters.ollama.context import unpack_context
from hostler.adapters.ollama.go_compat import Fields, decode_fields, decode_keep_alive, kind_of, quote
from hostler.adapters.ollama.names import require_name
from hostler.adapters.progress_removal import without_progress_lines, without_progress_thoughts
from hostler.adapters.system_turns import with_one_system_turn
from hostler.adapters.tool_calls import NO_ARGUMENTS, arguments_text

_ANY_OBJECT = msgspec.Raw(b'"json"')
_LEVELS = ("high", "medium", "low", "max")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n"
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]")
# Options that the model's profile decides: validated and then ignored.
_LOAD_OPTIONS = ("num_keep", "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")
# Options with a value of Ollama's own where the client sets none.
_WITH_DEFAULTS = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
    *("presence_penalty", "frequency_penalty"),
)


def decode_chat(origin: Origin) -> Request:
    """A chat; without messages, a request to load or unload the model."""
    fields = decode_fields(origin.body, "ChatRequest")
    output = _output(fields)
    model = require_name(fields.string("model"), missing="model is required")
    messages = [_message(message) for message in fields.each("messages", "Message")]
    thinking = _thinking(fields)
    keep_alive_s = decode_keep_alive(fields.any("keep_alive"))
    if not messages:
        return _control(origin, model, keep_alive_s)
    conversation = Conversation(
        messages=tuple(with_one_system_turn(messages)),
        tools=tuple(_tool(tool) for tool in fields.each("tools", "Tool")),
        sampling=decode_sampling(fields.mapping("options")),
        thinking=thinking,
    )
    return ChatRequest(origin=origin, model=model, output=output, conversation=conversation, keep_alive_s=keep_alive_s)


def decode_generate(origin: Origin) -> Request:
    """A prompt, as a conversation with one message so that the model's template is used, unless it is `raw`."""
    fields = decode_fields(origin.body, "GenerateRequest")
    output = _output(fields)
    model = require_name(fields.string("model"))
    prompt, suffix = fields.string("prompt"), fields.string("suffix")
    system, template = fields.string("system"), fields.string("template")
    context = fields.array("context", "[]int")
    raw = fields.flag("raw") or False
    images = _images(fields)
    thinking = _thinking(fields)
    keep_alive_s = decode_keep_alive(fields.any("keep_alive"))
    if not prompt and keep_alive_s == 0:
        return _control(origin, model, keep_alive_s)
    if raw and (template or system or context):
        raise BadRequest("raw mode does not support template, system, or context")
    if not prompt and not suffix:
        return _control(origin, model, keep_alive_s)
    if template:
        raise BadRequest("template is not supported: the model's own template is always used", param="template")
    sampling = decode_sampling(fields.mapping("options"))
    if raw or suffix:
        return CompletionRequest(
            origin=origin,
            model=model,
            output=output,
            prompt=prompt,
            suffix=suffix or None,
            sampling=sampling,
            keep_alive_s=keep_alive_s,
        )
    messages = [ChatMessage(role=role, parts=(Text(text=text),)) for role, text in unpack_context(context)]
    if system:
        messages = [message for message in messages if message.role != "system"]
        messages.insert(0, ChatMessage(role="system", parts=(Text(text=system),)))
    messages.append(ChatMessage(role="user", parts=(*images, Text(text=prompt))))
    conversation = Conversation(messages=tuple(messages), sampling=sampling, thinking=thinking)
    return ChatRequest(origin=origin, model=model, output=output, conversation=conversation, keep_alive_s=keep_alive_s)


def decode_embed(origin: Origin) -> Request:
    """Texts to embed as unit vectors; without a text, a request to load the model."""
    fields = decode_fields(origin.body, "EmbedRequest")
    model = require_name(fields.string("model"))
    given = fields.any("input")
    inputs = [] if given is None or given == "" else [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise BadRequest("invalid input type", param="input")
    fields.flag("truncate")
    decode_sampling(fields.mapping("options"))
    keep_alive_s = decode_keep_alive(fields.any("keep_alive"))
    if not inputs:
        return LoadRequest(origin=origin, kind="load", model=model, keep_alive_s=keep_alive_s)
    return EmbedRequest(
        origin=origin,
        model=model,
        inputs=tuple(inputs),
        dimensions=fields.integer("dimensions") or None,
        keep_alive_s=keep_alive_s,
    )


def decode_embeddings(origin: Origin) -> Request:
    """One text to embed without normalisation; without a text, a request to load the model."""
    fields = decode_fields(origin.body, "EmbeddingRequest")
    model = require_name(fields.string("model"), missing="model is required")
    prompt = fields.string("prompt")
    decode_sampling(fields.mapping("options"))
    keep_alive_s = decode_keep_alive(fields.any("keep_alive"))
    if not prompt:
        return LoadRequest(origin=origin, kind="load", model=model, keep_alive_s=keep_alive_s)
    return EmbedRequest(origin=origin, model=model, inputs=(prompt,), normalize=False, keep_alive_s=keep_alive_s)


def decode_top_logprobs(body: bytes) -> int:
    """The number of alternatives to each token that the client wants."""
    return decode_fields(body, "ChatRequest").integer("top_logprobs")


def decode_sampling(options: Mapping[str, Any]) -> Sampling:
    """The sampling parameters in `options`. Raises an error of status 500, as Ollama does, for a value of a wrong type.

    Defaults are those that Ollama sends to its engine; the engine's own differ (`min_p` is 0.05 there).
    """
    seed, limit = _integer(options, "seed", -1), _integer(options, "num_predict", -1)
    for name in _LOAD_OPTIONS:
        _integer(options, name, 0)
    if not isinstance(options.get("use_mmap"), bool | None):
        raise _option_error("use_mmap", "of type boolean")
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
        assumed=frozenset(name for name in _WITH_DEFAULTS if options.get(name) is None),
    )


def _number(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _option_error(name, "of type float32")
    return float(value)


def _integer(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _option_error(name, "of type integer")
    # The range that the engine can read.
    return max(-(2**31), min(int(value), 2**31 - 1 if name != "seed" else 2**32 - 1))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer with too many digits for a float
        return False


def _stop(options: Mapping[str, Any]) -> list[str]:
    value = options.get("stop")
    if value is None:
        return []
    if not isinstance(value, list):
        raise _option_error("stop", "of type array")
    if not all(isinstance(entry, str) for entry in value):
        raise _option_error("stop", "of an array of strings")
    # An empty one would stop every response before its first token.
    return [entry for entry in value if entry]


def _option_error(name: str, kind: str) -> GatewayError:
    return GatewayError(f'option "{name}" must be {kind}', param="options")


def _control(origin: Origin, model: str, keep_alive_s: float | None) -> LoadRequest:
    return LoadRequest(
        origin=origin, kind="unload" if keep_alive_s == 0 else "load", model=model, keep_alive_s=keep_alive_s
    )


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
        # An engine that is asked for no alternatives sends no log probabilities at all.
        logprobs=max(top, 1) if fields.flag("logprobs") else None,
    )


def _schema(wanted: Any) -> msgspec.Raw | None:
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return _ANY_OBJECT
    if isinstance(wanted, dict):
        return msgspec.Raw(msgspec.json.encode(wanted))
    given = quote(msgspec.json.encode(wanted).decode())
    raise GatewayError(f'invalid format: {given}; expected "json" or a valid JSON Schema object', param="format")


def _thinking(fields: Fields) -> bool | str | None:
    wanted = fields.any("think")
    if wanted is None or isinstance(wanted, bool):
        return wanted
    if isinstance(wanted, str):
        return wanted
    raise BadRequest(
        f'think must be a boolean or string ("high", "medium", "low", "max", true, or false), got {kind_of(wanted)}',
        param="think",
    )


def supported_thinking(wanted: bool | str | None, card: ModelCard) -> bool | str | None:
    """The value for a model: its default instead of a level that it does not have, where its levels are known. Raises
    `BadRequest` for a word that is no level."""
    if not isinstance(wanted, str) or wanted in card.thinking:
        return wanted
    if card.thinking:
        return card.thinking_default
    if wanted in _LEVELS:
        return wanted
    raise BadRequest(
        f'invalid think value: {quote(wanted)} (must be "high", "medium", "low", "max", true, or false)', param="think"
    )


def _message(fields: Fields) -> ChatMessage:
    content, role = fields.string("content"), fields.string("role").lower()
    if role == "assistant":
        content = without_progress_thoughts(content)
    parts: list[Part] = [*_images(fields)]
    if content:
        parts.append(Text(text=content))
    calls = [_call(index, call) for index, call in enumerate(fields.each("tool_calls", "ToolCall"))]
    return ChatMessage(
        role=role,
        parts=tuple(parts),
        reasoning=without_progress_lines(fields.string("thinking")) or None,
        tool_calls=tuple(calls),
        tool_call_id=fields.string("tool_call_id") or None,
        name=fields.string("tool_name") or None,
    )


def _call(index: int, call: Fields) -> ToolCall:
    function = call.inner("function", "ToolCallFunction")
    arguments = function.any("arguments")
    if not (isinstance(arguments, str) and _is_object(arguments)):
        # Ollama takes an object only; as JSON text it comes from clients of other servers.
        arguments = arguments_text(function.mapping("arguments", "api.ToolCallFunctionArguments"))
    return ToolCall(
        index=index, id=call.string("id") or None, name=function.string("name"), arguments=arguments or NO_ARGUMENTS
    )


def _is_object(text: str) -> bool:
    if not text:
        return True
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except NOT_JSON:
        return False


def _tool(fields: Fields) -> Tool:
    function = fields.inner("function", "ToolFunction")
    parameters = function.mapping("parameters", "api.ToolFunctionParameters")
    return Tool(
        name=function.string("name"),
        description=function.string("description") or None,
        parameters=msgspec.Raw(msgspec.json.encode(parameters)) if parameters else None,
    )


def _images(fields: Fields) -> list[Media]:
    return [_decode_image(data) for data in fields.strings("images")]


def _decode_image(data: str) -> Media:
    # Deleting the allowed characters is much faster than searching for others.
    if data.encode("ascii", "replace").translate(None, _BASE64):
        illegal = _NOT_BASE64.search(data)
        raise BadRequest(f"illegal base64 data at input byte {illegal.start() if illegal else 0}", param="images")
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
    """The type of a file, from its first bytes."""
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
