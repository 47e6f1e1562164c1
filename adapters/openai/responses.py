"""Requests of OpenAI's responses API, decoded for backends that have only chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import msgspec

from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    Conversation,
    Media,
    Output,
    Part,
    Sampling,
    Text,
    ToolCall,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody
from hostler.adapters.openai.chat import ANY_OBJECT, decode_body, decode_media
from hostler.adapters.openai.custom_tools import as_arguments
from hostler.adapters.openai.responses_tools import (
    KINDS,
    TOOL_SEARCH,
    CallableTools,
    ResponsesTool,
    callable_name,
)
from hostler.adapters.openai.schema import NULL
from hostler.adapters.progress_removal import without_progress_lines, without_progress_parts
from hostler.adapters.system_turns import with_one_system_turn
from hostler.adapters.tool_calls import arguments_text

_ROLES = frozenset({"user", "assistant", "system", "developer"})

# Items that are tool calls, and their results.
_CALLS = frozenset({"function_call", "custom_tool_call", "tool_search_call"})
_CALL_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output"})
#: Changes reasoning and the form of the text for the responses that follow it.
_UPDATE = "configuration_update"
_SEARCH_ITEMS = frozenset({"tool_search_call", "tool_search_output"})

# Items of OpenAI's own tools in the history: other models cannot read them.
_HOSTED_TOOL_ITEMS = frozenset(
    {
        *("web_search_call", "file_search_call", "computer_call", "code_interpreter_call", "image_generation_call"),
        *("mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response", "compaction"),
        *("program", "program_output"),
    }
)


class ResponsesPart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "input_text"
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    input_audio: dict[str, str] | None = None


class ResponsesItem(msgspec.Struct, frozen=True, kw_only=True):
    type: str | None = None
    role: str | None = None
    content: str | list[ResponsesPart] | None = None
    summary: list[ResponsesPart] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: Any = None
    input: Any = None
    output: str | list[ResponsesPart] | None = None
    tools: list[ResponsesTool] | None = None
    execution: str | None = None
    reasoning: msgspec.Raw = msgspec.Raw(NULL)
    text: msgspec.Raw = msgspec.Raw(NULL)


class ResponsesToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function"
    name: str | None = None
    namespace: str | None = None
    mode: str | None = None
    tools: list[ResponsesToolChoice] | None = None


class ResponsesReasoning(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None = None


class ResponsesFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    schema: msgspec.Raw = msgspec.Raw(NULL)


class ResponsesText(msgspec.Struct, frozen=True, kw_only=True):
    format: ResponsesFormat | None = None


class ResponsesBody(msgspec.Struct, frozen=True, kw_only=True):
    input: str | list[ResponsesItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: str | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ResponsesReasoning | None = None


_TEXT = msgspec.json.Decoder(ResponsesText | None)
_REASONING = msgspec.json.Decoder(ResponsesReasoning | None)
_INCLUDE = msgspec.json.Decoder(list[str] | None)


def decode_output(document: JsonBody) -> Output:
    if document.flag("background"):
        raise BadRequest("`background` is not supported; stream the response instead.", param="background")
    schema = _schema(document.get("text", _TEXT, expected="an object"))
    include = document.get("include", _INCLUDE, expected="a list of strings") or ()
    logprobs = (document.number("top_logprobs") or 0) if "message.output_text.logprobs" in include else None
    return Output(stream=document.flag("stream"), include_usage=True, schema=schema, logprobs=logprobs)


def _schema(text: ResponsesText | None) -> msgspec.Raw | None:
    wanted = text.format if text is not None else None
    if wanted is None or wanted.type not in ("json_schema", "json_object"):
        return None
    return ANY_OBJECT if bytes(wanted.schema) == NULL else msgspec.Raw(bytes(wanted.schema))


def _updates(items: list[ResponsesItem]) -> tuple[ResponsesReasoning | None, ResponsesText | None]:
    """The reasoning and the form of the text that items of the conversation have set; `None` for what none has."""
    reasoning, text = None, None
    for index, item in enumerate(items):
        if item.type != _UPDATE:
            continue
        try:
            reasoning = _REASONING.decode(item.reasoning) or reasoning
            text = _TEXT.decode(item.text) or text
        except msgspec.ValidationError as error:
            raise BadRequest(f"`input[{index}]` is no valid update: {error}.", param=f"input[{index}]") from None
    return reasoning, text


def decode_request(request: ChatRequest) -> ChatRequest:
    """The request with its conversation. Raises `BadRequest` naming the field that is invalid or not supported."""
    body = decode_body(request.origin.body, ResponsesBody)
    for name in ("previous_response_id", "conversation"):
        if getattr(body, name):
            raise BadRequest(
                f"`{name}` needs a backend that stores responses; send the conversation in `input`.", param=name
            )
    if not body.input and not body.instructions:
        raise BadRequest("`input` is missing.", param="input")
    messages = [ChatMessage(role="system", parts=(Text(text=body.instructions),))] if body.instructions else []
    messages += _messages(body.input or "")
    declaring = [] if isinstance(body.input, str) else [item.tools or () for item in body.input or ()]
    tools = CallableTools([*(body.tools or ()), *chain.from_iterable(declaring)])
    functions, choice = tuple(tools.functions()), body.tool_choice
    if isinstance(choice, ResponsesToolChoice):
        if choice.type == "allowed_tools":
            allowed = {_called(each) for each in choice.tools or ()}
            functions = tuple(function for function in functions if function.name in allowed)
        choice = _called(choice) if choice.type in KINDS else choice.mode
    reasoning, text = _updates(body.input) if isinstance(body.input, list) else (None, None)
    reasoning = reasoning or body.reasoning
    effort = reasoning.effort if reasoning is not None else None
    conversation = Conversation(
        messages=tuple(with_one_system_turn(messages)),
        tools=functions,
        tool_choice=choice if functions else None,
        parallel_tool_calls=body.parallel_tool_calls if functions else None,
        sampling=Sampling(temperature=body.temperature, top_p=body.top_p, max_tokens=body.max_output_tokens),
        thinking=False if effort == "none" else effort,
    )
    output = request.output if text is None else msgspec.structs.replace(request.output, schema=_schema(text))
    return msgspec.structs.replace(request, conversation=conversation, output=output)


def _called(choice: ResponsesToolChoice) -> str:
    return callable_name(choice.name or "", choice.namespace)


def _messages(items: str | list[ResponsesItem]) -> Iterable[ChatMessage]:
    """The messages. Reasoning, text and tool calls of an assistant are separate items; here they are one message."""
    if isinstance(items, str):
        yield ChatMessage(role="user", parts=(Text(text=items),))
        return
    assistant: ChatMessage | None = None
    for index, item in enumerate(items):
        param = f"input[{index}]"
        kind = item.type or ("message" if item.role is not None else "")
        if kind in _HOSTED_TOOL_ITEMS or kind in ("additional_tools", _UPDATE) or _is_servers_search(item):
            continue
        if kind in _CALLS or kind == "reasoning" or (kind == "message" and item.role == "assistant"):
            assistant = _with_item(assistant or ChatMessage(role="assistant"), item, kind, param)
            continue
        if assistant is not None:
            yield assistant
            assistant = None
        if kind == "message":
            if item.role not in _ROLES:
                raise BadRequest(f"`{param}.role` must be user, assistant, system or developer.", param=param)
            role = "system" if item.role == "developer" else item.role
            yield ChatMessage(role=role, parts=tuple(_parts(item.content, f"{param}.content")))
        elif kind in _CALL_OUTPUTS:
            parts = tuple(_parts(item.output, f"{param}.output"))
            yield ChatMessage(role="tool", parts=parts, tool_call_id=item.call_id, name=item.name)
        elif kind == "tool_search_output":
            found = ", ".join(CallableTools(item.tools or ())) or "none"
            yield ChatMessage(role="tool", parts=(Text(text=f"Tools found: {found}"),), tool_call_id=item.call_id)
        else:
            raise BadRequest(
                f"`{param}` is of the type {(kind or 'unknown')[:50]!r}, which the backend of this model does not "
                "support.",
                param=param,
            )
    if assistant is not None:
        yield assistant


def _is_servers_search(item: ResponsesItem) -> bool:
    """Whether a search for tools, or what it found, is of one that the server has carried out: no model has called it."""
    return item.type in _SEARCH_ITEMS and (item.execution != "client" or not item.call_id)


def _with_item(message: ChatMessage, item: ResponsesItem, kind: str, param: str) -> ChatMessage:
    """The assistant's message with one more item."""
    if kind in _CALLS:
        is_custom = kind == "custom_tool_call"
        arguments = as_arguments(str(item.input or "")) if is_custom else arguments_text(item.arguments)
        name = TOOL_SEARCH if kind == "tool_search_call" else callable_name(item.name or "", item.namespace)
        call = ToolCall(index=len(message.tool_calls), id=item.call_id, name=name, arguments=arguments)
        return msgspec.structs.replace(message, tool_calls=(*message.tool_calls, call))
    if kind == "reasoning":
        parts = item.content if isinstance(item.content, list) and item.content else item.summary or []
        texts = [message.reasoning, *(without_progress_lines(part.text or "") for part in parts)]
        return msgspec.structs.replace(message, reasoning="\n".join(text for text in texts if text) or None)
    said = without_progress_parts(_parts(item.content, f"{param}.content"))
    return msgspec.structs.replace(message, parts=(*message.parts, *said))


def _parts(content: str | list[ResponsesPart] | None, param: str) -> Iterable[Part]:
    if isinstance(content, str):
        return [Text(text=content)] if content else []
    return [_part(part, f"{param}[{at}]") for at, part in enumerate(content or ())]


def _part(part: ResponsesPart, param: str) -> Part:
    if part.type in ("input_text", "output_text", "text"):
        return Text(text=part.text or "")
    if part.type == "refusal":
        return Text(text=part.refusal or "")
    if part.type == "input_image" and part.image_url is not None:
        return decode_media("image", part.image_url)
    if part.type == "input_audio" and part.input_audio is not None:
        audio: Mapping[str, str] = part.input_audio
        return Media(kind="audio", data=audio.get("data"), mime=f"audio/{audio.get('format', 'wav')}")
    raise BadRequest(f"`{param}` is of a type that the backend of this model does not support.", param=param)
