"""The tools of OpenAI's chats and their calls in the history, with custom tools as functions."""

from __future__ import annotations

import msgspec

from hostler.adapters.canonical import Tool, ToolCall
from hostler.adapters.json_body import NOT_JSON, JsonBody
from hostler.adapters.openai.custom_tools import CustomFormat, as_arguments, as_function, has_custom_tools
from hostler.adapters.openai.request_schema import ChatBody, OpenAIFunction, OpenAIMessage, OpenAITool, OpenAIToolChoice
from hostler.adapters.openai.schema import NULL
from hostler.adapters.tool_calls import arguments_text


class _Kind(msgspec.Struct, frozen=True):
    type: str = "function"


class _Calls(msgspec.Struct, frozen=True):
    tool_calls: list[_Kind] | None = None


_TOOLS = msgspec.json.Decoder(list[OpenAITool] | None)
_HISTORY = msgspec.json.Decoder(list[_Calls])


def uses_custom_tools(document: JsonBody) -> bool:
    """Whether a chat has custom tools, or calls of some in its history."""
    if custom_tools(document):
        return True
    messages = bytes(document.members.get("messages", b""))
    if not has_custom_tools(messages):
        return False
    try:
        return any(call.type == "custom" for message in _HISTORY.decode(messages) for call in message.tool_calls or ())
    except NOT_JSON:
        return False


def custom_tools(document: JsonBody) -> frozenset[str]:
    """The names of a chat's custom tools."""
    tools = bytes(document.members.get("tools", b""))
    if not has_custom_tools(tools):
        return frozenset()
    try:
        return frozenset(tool.custom.name for tool in _TOOLS.decode(tools) or () if tool.custom is not None)
    except NOT_JSON:
        return frozenset()


def decode_tools(chat: ChatBody) -> tuple[tuple[Tool, ...], str | None]:
    """The tools, and which of them is to be called: a mode or a name."""
    if chat.tools is None:
        tools = [_function(function) for function in chat.functions or ()]
    else:
        tools = [_tool(tool) for tool in chat.tools if tool.function is not None or tool.custom is not None]
    choice = chat.tool_choice
    if not isinstance(choice, OpenAIToolChoice):
        return tuple(tools), choice
    if choice.allowed_tools is not None:
        allowed = {_chosen(tool) for tool in choice.allowed_tools.tools}
        return tuple(tool for tool in tools if tool.name in allowed), choice.allowed_tools.mode
    return tuple(tools), _chosen(choice)


def past_calls(message: OpenAIMessage) -> tuple[ToolCall, ...]:
    """The calls that a message of the history made."""
    calls = []
    for at, call in enumerate(message.tool_calls or ()):
        if call.custom is not None:
            arguments = as_arguments(call.custom.input or "")
            calls.append(ToolCall(index=at, id=call.id, name=call.custom.name, arguments=arguments))
        elif call.function is not None:
            arguments = arguments_text(call.function.arguments)
            calls.append(ToolCall(index=at, id=call.id, name=call.function.name, arguments=arguments))
    if message.function_call is not None:
        legacy = message.function_call
        calls.append(ToolCall(name=legacy.name, arguments=arguments_text(legacy.arguments)))
    return tuple(calls)


def _tool(tool: OpenAITool) -> Tool:
    if tool.custom is None:
        return _function(tool.function or OpenAIFunction(name=""))
    wanted = tool.custom.format
    grammar = wanted.grammar if wanted is not None else None
    form = (
        None if grammar is None else CustomFormat(type="grammar", syntax=grammar.syntax, definition=grammar.definition)
    )
    return as_function(tool.custom.name, tool.custom.description, form)


def _function(function: OpenAIFunction) -> Tool:
    raw = bytes(function.parameters)
    return Tool(
        name=function.name,
        description=function.description,
        parameters=None if raw == NULL else msgspec.Raw(raw),
        strict=function.strict,
    )


def _chosen(choice: OpenAIToolChoice) -> str | None:
    named = choice.function or choice.custom
    return (named.name if named is not None else None) or choice.name
