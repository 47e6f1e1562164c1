"""OpenAI's request bodies, decoded for backends of another protocol, and changed where the gateway has to."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from hostler.adapters import json_body, lenient, presets
from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Conversation,
    EmbedRequest,
    Media,
    Part,
    Request,
    RerankRequest,
    Sampling,
    Text,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import NOT_JSON, JsonBody
from hostler.adapters.openai.chat_tools import decode_tools, past_calls
from hostler.adapters.openai.request_schema import (
    ChatBody,
    CompletionBody,
    ContentPart,
    EmbeddingsBody,
    JsonSchemaFormat,
    OpenAIMessage,
    ReasoningOptions,
    RerankBody,
    ResponseFormat,
    SamplingBody,
)
from hostler.adapters.openai.schema import NULL
from hostler.adapters.progress_removal import without_progress_lines, without_progress_parts
from hostler.adapters.tool_calls import NO_ARGUMENTS, arguments_text
from hostler.profiles.presets import Preset

T = TypeVar("T")

#: A schema for any JSON object.
ANY_OBJECT = msgspec.Raw(b'"json"')


# The preset parameters that the responses API has, under its names.
_RESPONSES_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_output_tokens"}

# Arguments of a call that are no text; also a parameter of a tool with this name.
_ODD_ARGUMENTS = re.compile(rb'"arguments"\s*:\s*[^\s"]')
_decode_history = msgspec.json.Decoder(list[dict[str, Any]]).decode
_decode_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def decode_request(request: Request) -> Request:
    """The request with everything decoded. Raises `BadRequest` naming the invalid field."""
    body = request.origin.body
    if isinstance(request, ChatRequest) and request.conversation is not None:
        return request
    if isinstance(request, ChatRequest):
        return msgspec.structs.replace(request, conversation=_conversation(decode_body(body, ChatBody)))
    if isinstance(request, CompletionRequest):
        completion = decode_body(body, CompletionBody)
        prompt = completion.prompt
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise BadRequest("`prompt` must be one string for the backend of this model.", param="prompt")
        return msgspec.structs.replace(request, prompt=prompt, suffix=completion.suffix, sampling=_sampling(completion))
    if isinstance(request, EmbedRequest):
        embeddings = decode_body(body, EmbeddingsBody)
        inputs = [embeddings.input] if isinstance(embeddings.input, str) else embeddings.input
        if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise BadRequest(
                "`input` must be a string or a list of strings for the backend of this model.", param="input"
            )
        return msgspec.structs.replace(request, inputs=tuple(inputs), dimensions=embeddings.dimensions)
    if isinstance(request, RerankRequest):
        rerank = decode_body(body, RerankBody)
        documents = tuple(_document_text(entry) for entry in rerank.documents or rerank.texts or ())
        return msgspec.structs.replace(request, query=rerank.query, documents=documents, top_n=rerank.top_n)
    return request


def decode_body(body: bytes, kind: type[T]) -> T:
    """The body as typed values. Raises `BadRequest` naming the invalid field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _type_error(error) from None
    except NOT_JSON:
        raise BadRequest("The request body is not valid JSON.") from None


def decode_schema(document: JsonBody) -> msgspec.Raw | None:
    """The JSON Schema that the answer has to follow, `"json"` for any object, `None` for free text."""
    if document.has("response_format"):
        wanted = _decode_member(document, "response_format", ResponseFormat)
        if wanted.type == "json_schema":
            return _schema_or_any((wanted.json_schema or JsonSchemaFormat()).schema)
        if wanted.type == "json_object":
            return _schema_or_any(wanted.schema)
    if document.has("json_schema"):
        return msgspec.Raw(bytes(document.members["json_schema"]))
    return None


def decode_logprobs(document: JsonBody) -> int | None:
    """How many alternatives to each token are wanted; `None` without log probabilities."""
    if not document.has("logprobs"):
        return None
    wanted: bool | int = _decode_member(document, "logprobs", bool | int)
    if isinstance(wanted, bool):
        return (document.number("top_logprobs") or 0) if wanted else None
    return wanted


def decode_media(kind: Any, url: str) -> Media:
    """The data of a `data:` URL with base64, else the URL itself, which is not fetched here."""
    if url[:5].lower() == "data:":
        head, comma, data = url[5:].partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadRequest("A data URL must contain base64.", param="messages")
        return Media(kind=kind, data=data, mime=head[: -len(";base64")].split(";")[0] or None)
    return Media(kind=kind, url=url)


def with_preset(request: Request, preset: Preset) -> Request:
    """The request with the preset's values where the client gave none."""
    if not isinstance(request, ChatRequest | CompletionRequest):
        return request
    body = request.origin.body
    defaults = presets.preset_sampling(preset)
    if request.origin.operation == "responses":
        defaults = {_RESPONSES_SAMPLING[key]: value for key, value in defaults.items() if key in _RESPONSES_SAMPLING}
        if preset.system:
            defaults["instructions"] = preset.system
        body = presets.with_defaults(body, defaults)
    else:
        body = presets.with_defaults(body, defaults, aliases={"max_tokens": presets.MAX_TOKENS_NAMES})
        if isinstance(request, ChatRequest):
            body = presets.with_messages(body, preset.messages, preset.system)
    return msgspec.structs.replace(request, origin=msgspec.structs.replace(request.origin, body=body))


def with_text_arguments(body: bytes) -> bytes:
    """The body of a chat whose earlier tool calls have their arguments as JSON text, as servers require it: some clients
    send objects or null.

    Returns the same object if they have, which a search in the bytes finds out in most cases.
    """
    if b'"arguments"' not in body or _ODD_ARGUMENTS.search(body) is None:
        return body
    raw = json_body.members(body).get("messages")
    try:
        messages = None if raw is None else _decode_messages(raw)
    except msgspec.ValidationError:
        return body
    changed = False
    for message in messages or ():
        if b'"arguments"' not in bytes(message.get("tool_calls", b"")):
            continue
        try:
            calls = _decode_history(message["tool_calls"])
        except msgspec.ValidationError:
            continue
        for call in calls:
            function = call.get("function")
            if isinstance(function, dict) and not isinstance(function.get("arguments", ""), str):
                function["arguments"] = arguments_text(function["arguments"]) or NO_ARGUMENTS
                changed = True
        message["tool_calls"] = msgspec.Raw(lenient.encode(calls))
    return json_body.patch(body, {"messages": msgspec.json.encode(messages)}) if changed else body


def _conversation(chat: ChatBody) -> Conversation:
    tools, choice = decode_tools(chat)
    return Conversation(
        messages=tuple(_message(message, index) for index, message in enumerate(chat.messages)),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=chat.parallel_tool_calls,
        sampling=_sampling(chat),
        thinking=_thinking(chat),
    )


def _message(message: OpenAIMessage, index: int) -> ChatMessage:
    parts: list[Part] = []
    content = message.content if message.content is not None else message.refusal
    if isinstance(content, str):
        parts = [Text(text=content)] if content else []
    else:
        parts = [_content_part(part, f"messages[{index}].content[{at}]") for at, part in enumerate(content or ())]
    if message.role == "assistant":
        parts = list(without_progress_parts(parts))
    return ChatMessage(
        role="tool" if message.role == "function" else message.role,
        parts=tuple(parts),
        reasoning=without_progress_lines(message.reasoning_content or message.reasoning or "") or None,
        tool_calls=past_calls(message),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _content_part(part: ContentPart, param: str) -> Part:
    if part.type in ("text", "input_text", "output_text"):
        return Text(text=part.text or "")
    if part.type == "refusal":
        return Text(text=part.refusal or "")
    if part.type == "image_url" and part.image_url is not None:
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        return decode_media("image", url)
    if part.type == "input_audio" and part.input_audio is not None:
        return Media(kind="audio", data=part.input_audio.data, mime=f"audio/{part.input_audio.format}")
    raise BadRequest(f"`{param}` is of a type that the backend of this model does not support.", param=param)


def _thinking(chat: ChatBody) -> bool | str | None:
    reasoning = chat.reasoning or ReasoningOptions()
    effort = chat.reasoning_effort or reasoning.effort
    if effort is not None:
        return False if effort == "none" else effort
    if reasoning.enabled is not None:
        return reasoning.enabled
    if chat.think is not None:
        return chat.think
    return None if chat.chat_template_kwargs is None else chat.chat_template_kwargs.enable_thinking


def _sampling(body: SamplingBody) -> Sampling:
    limits = (body.n_predict, body.max_completion_tokens, body.max_tokens)
    penalty = body.repeat_penalty if body.repeat_penalty is not None else body.repetition_penalty
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repeat_penalty=penalty,
        repeat_last_n=body.repeat_last_n,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
        max_tokens=next((limit for limit in limits if limit is not None), None),
        stop=(body.stop,) if isinstance(body.stop, str) else None if body.stop is None else tuple(body.stop),
    )


def _document_text(entry: Any) -> str:
    text = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise BadRequest("`documents` must be a list of strings.", param="documents")
    return text


def _schema_or_any(raw: msgspec.Raw) -> msgspec.Raw:
    return ANY_OBJECT if bytes(raw) == NULL else msgspec.Raw(bytes(raw))


def _decode_member(document: JsonBody, name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(document.members[name], type=kind)
    except msgspec.ValidationError as error:
        raise _type_error(error, name) from None


def _type_error(error: msgspec.ValidationError, within: str = "") -> BadRequest:
    # msgspec's message is "Expected `str`, got `int` - at `$.messages[0].role`".
    reason, _, path = str(error).partition(" - at ")
    path = (within + path.strip("`").removeprefix("$")).lstrip(".")
    return BadRequest(f"`{path}`: {reason}." if path else f"{reason}.", param=path or None)
