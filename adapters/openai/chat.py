"""OpenAI's request bodies understood in full, for backends that speak another protocol."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from hostler.adapters import json_body, presets
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import NOT_JSON, JsonBody
from hostler.adapters.openai.schema import FunctionPiece, ToolCallPiece
from hostler.adapters.progress import PREFIX
from hostler.adapters.types import (
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
    Tool,
    ToolCall,
)
from hostler.profiles.presets import Preset

_MARK = PREFIX.encode()
_LINES = re.compile(r"^\[hostler\] [^\n]*(?:\n|\Z)", re.MULTILINE)
_FIELDS = ("reasoning_content", "reasoning")
_decode = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def thought(reasoning: str) -> str:
    """What the model thought, without what the gateway has shown before it."""
    return _LINES.sub("", reasoning) if PREFIX in reasoning else reasoning


def without_progress(body: bytes) -> bytes:
    """The chat request's body without the progress lines in the reasoning of earlier answers.

    The very same object if there are none, which is found out at the speed of memory.
    """
    if _MARK not in body:
        return body
    raw = json_body.members(body).get("messages")
    if raw is None:
        return body
    try:
        messages = _decode(raw)
    except msgspec.ValidationError:
        return body
    changed = False
    for message in messages:
        for name in _FIELDS:
            text = message.get(name)
            if text is None or _MARK not in bytes(text):
                continue
            try:
                said = msgspec.json.decode(text, type=str)
            except msgspec.ValidationError:
                continue
            message[name] = msgspec.Raw(msgspec.json.encode(thought(said)))
            changed = True
    return json_body.patch(body, {"messages": msgspec.json.encode(messages)}) if changed else body


T = TypeVar("T")
_NULL = b"null"
#: Stands for a schema where any JSON object will do.
ANY_OBJECT = msgspec.Raw(b'"json"')


class _Url(msgspec.Struct, frozen=True, kw_only=True):
    url: str


class _Audio(msgspec.Struct, frozen=True, kw_only=True):
    data: str
    format: str = "wav"


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    text: str | None = None
    refusal: str | None = None
    image_url: str | _Url | None = None
    input_audio: _Audio | None = None


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    role: str = "user"
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None
    function_call: FunctionPiece | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _Function(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(_NULL)


class _Tool(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function"
    function: _Function | None = None


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function"
    function: _Named | None = None
    name: str | None = None


class _Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None = None
    enabled: bool | None = None


class _TemplateArguments(msgspec.Struct, frozen=True, kw_only=True):
    enable_thinking: bool | None = None


class _Sampling(msgspec.Struct, frozen=True, kw_only=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n_predict: int | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None


class _Chat(_Sampling, frozen=True, kw_only=True):
    messages: list[_Message]
    tools: list[_Tool] | None = None
    functions: list[_Function] | None = None
    tool_choice: str | _Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning: _Reasoning | None = None
    think: bool | str | None = None
    chat_template_kwargs: _TemplateArguments | None = None


class _Completion(_Sampling, frozen=True, kw_only=True):
    prompt: Any = None
    suffix: str | None = None


class _Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    input: Any = None
    dimensions: int | None = None


class _Rerank(msgspec.Struct, frozen=True, kw_only=True):
    query: str
    documents: list[Any] | None = None
    texts: list[Any] | None = None
    top_n: int | None = None


class _JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    schema: msgspec.Raw = msgspec.Raw(_NULL)


class _Format(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    schema: msgspec.Raw = msgspec.Raw(_NULL)
    json_schema: _JsonSchema | None = None


def expand(request: Request) -> Request:
    """The request with everything decoded. Raises `BadRequest` naming the field that cannot be understood."""
    body = request.origin.body
    if isinstance(request, ChatRequest) and request.conversation is not None:
        return request
    if isinstance(request, ChatRequest):
        return msgspec.structs.replace(request, conversation=_dialogue(read(body, _Chat)))
    if isinstance(request, CompletionRequest):
        completion = read(body, _Completion)
        prompt = completion.prompt
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise BadRequest("`prompt` must be one string for the backend of this model.", param="prompt")
        return msgspec.structs.replace(request, prompt=prompt, suffix=completion.suffix, sampling=_sampling(completion))
    if isinstance(request, EmbedRequest):
        embeddings = read(body, _Embeddings)
        inputs = [embeddings.input] if isinstance(embeddings.input, str) else embeddings.input
        if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise BadRequest(
                "`input` must be a string or a list of strings for the backend of this model.", param="input"
            )
        return msgspec.structs.replace(request, inputs=tuple(inputs), dimensions=embeddings.dimensions)
    if isinstance(request, RerankRequest):
        rerank = read(body, _Rerank)
        documents = tuple(_document(entry) for entry in rerank.documents or rerank.texts or ())
        return msgspec.structs.replace(request, query=rerank.query, documents=documents, top_n=rerank.top_n)
    return request


def schema(document: JsonBody) -> msgspec.Raw | None:
    """The JSON Schema that the answer shall follow, `"json"` for any object, `None` for free text."""
    if document.has("response_format"):
        asked = _part(document, "response_format", _Format)
        if asked.type == "json_schema":
            return _schema_or_any((asked.json_schema or _JsonSchema()).schema)
        if asked.type == "json_object":
            return _schema_or_any(asked.schema)
    if document.has("json_schema"):
        return msgspec.Raw(bytes(document.members["json_schema"]))
    return None


def logprobs(document: JsonBody) -> int | None:
    """How many alternatives to each token are asked for; `None` if no log probabilities are."""
    if not document.has("logprobs"):
        return None
    asked: bool | int = _part(document, "logprobs", bool | int)
    if isinstance(asked, bool):
        return (document.number("top_logprobs") or 0) if asked else None
    return asked


def _dialogue(chat: _Chat) -> Conversation:
    functions = [tool.function for tool in chat.tools or () if tool.function is not None] or chat.functions or []
    choice = chat.tool_choice
    if isinstance(choice, _Choice):
        choice = (choice.function.name if choice.function else None) or choice.name
    return Conversation(
        messages=tuple(_message(message, place) for place, message in enumerate(chat.messages)),
        tools=tuple(_tool(function) for function in functions),
        tool_choice=choice,
        parallel_tool_calls=chat.parallel_tool_calls,
        sampling=_sampling(chat),
        thinking=_thinking(chat),
    )


def _message(message: _Message, place: int) -> ChatMessage:
    parts: list[Part] = []
    content = message.content if message.content is not None else message.refusal
    if isinstance(content, str):
        parts = [Text(text=content)] if content else []
    else:
        parts = [_content_part(part, f"messages[{place}].content[{at}]") for at, part in enumerate(content or ())]
    calls = [
        ToolCall(index=at, id=call.id, name=call.function.name, arguments=call.function.arguments or "")
        for at, call in enumerate(message.tool_calls or ())
        if call.function is not None
    ]
    if message.function_call is not None:
        calls.append(ToolCall(name=message.function_call.name, arguments=message.function_call.arguments or ""))
    return ChatMessage(
        role="tool" if message.role == "function" else message.role,
        parts=tuple(parts),
        reasoning=thought(message.reasoning_content or message.reasoning or "") or None,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _content_part(part: _Part, where: str) -> Part:
    if part.type in ("text", "input_text", "output_text"):
        return Text(text=part.text or "")
    if part.type == "refusal":
        return Text(text=part.refusal or "")
    if part.type == "image_url" and part.image_url is not None:
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        return media("image", url)
    if part.type == "input_audio" and part.input_audio is not None:
        return Media(kind="audio", data=part.input_audio.data, mime=f"audio/{part.input_audio.format}")
    raise BadRequest(f"`{where}` is of a type that the backend of this model does not take.", param=where)


def media(kind: Any, url: str) -> Media:
    """What a URL names: the data itself for a `data:` URL with base64, else the URL, which is not fetched here."""
    if url[:5].lower() == "data:":
        head, comma, data = url[5:].partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadRequest("A data URL must hold base64.", param="messages")
        return Media(kind=kind, data=data, mime=head[: -len(";base64")].split(";")[0] or None)
    return Media(kind=kind, url=url)


def _tool(function: _Function) -> Tool:
    raw = bytes(function.parameters)
    return Tool(
        name=function.name,
        description=function.description,
        parameters=None if raw == _NULL else msgspec.Raw(raw),
    )


def _thinking(chat: _Chat) -> bool | str | None:
    reasoning = chat.reasoning or _Reasoning()
    effort = chat.reasoning_effort or reasoning.effort
    if effort is not None:
        return False if effort == "none" else effort
    if reasoning.enabled is not None:
        return reasoning.enabled
    if chat.think is not None:
        return chat.think
    return None if chat.chat_template_kwargs is None else chat.chat_template_kwargs.enable_thinking


def _sampling(body: _Sampling) -> Sampling:
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


def _document(entry: Any) -> str:
    text = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise BadRequest("`documents` must be a list of strings.", param="documents")
    return text


def _schema_or_any(raw: msgspec.Raw) -> msgspec.Raw:
    return ANY_OBJECT if bytes(raw) == _NULL else msgspec.Raw(bytes(raw))


def _part(document: JsonBody, name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(document.members[name], type=kind)
    except msgspec.ValidationError as error:
        raise _wrong(error, name) from None


def read(body: bytes, kind: type[T]) -> T:
    """The body as typed values. Raises `BadRequest` naming the field that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong(error) from None
    except NOT_JSON:
        raise BadRequest("The request body is not valid JSON.") from None


def _wrong(error: msgspec.ValidationError, within: str = "") -> BadRequest:
    # msgspec says "Expected `str`, got `int` - at `$.messages[0].role`".
    reason, _, place = str(error).partition(" - at ")
    place = (within + place.strip("`").removeprefix("$")).lstrip(".")
    return BadRequest(f"`{place}`: {reason}." if place else f"{reason}.", param=place or None)


# As responses call what chats call otherwise; they know no others.
_RESPONSES = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_output_tokens"}


def with_preset(request: Request, preset: Preset) -> Request:
    """The request with what the preset says and the client does not."""
    if not isinstance(request, ChatRequest | CompletionRequest):
        return request
    body = request.origin.body
    wanted = presets.preset_sampling(preset)
    if request.origin.operation == "responses":
        wanted = {_RESPONSES[name]: value for name, value in wanted.items() if name in _RESPONSES}
        if preset.system:
            wanted["instructions"] = preset.system
        body = presets.with_defaults(body, wanted)
    else:
        body = presets.with_defaults(body, wanted, aliases={"max_tokens": presets.MAX_TOKENS_NAMES})
        if isinstance(request, ChatRequest):
            body = presets.with_messages(body, preset.messages, preset.system)
    return msgspec.structs.replace(request, origin=msgspec.structs.replace(request.origin, body=body))
