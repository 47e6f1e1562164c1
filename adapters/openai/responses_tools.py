"""The tools of OpenAI's responses API under the names by which a model calls them: those in a namespace have it in front, and a
client's search for tools is a function as well."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from hostler.adapters.canonical import Tool
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.custom_tools import CustomFormat, as_function
from hostler.adapters.openai.schema import NULL

#: Tools that a client names and carries out.
KINDS = frozenset({"function", "custom"})
#: The tool with which a model finds further ones; the name of its function. Of those, a client carries out its own only.
TOOL_SEARCH = "tool_search"
_NAMESPACE = "namespace"

#: Input items that declare further tools.
DECLARING_ITEMS = frozenset({"additional_tools", "tool_search_output"})
_MARKS = (b'"custom"', b'"namespace"', b'"tool_search"')
_DECLARING = tuple(f'"{kind}"'.encode() for kind in sorted(DECLARING_ITEMS))

#: What servers accept as the name of a function.
_LONGEST_NAME = 64
_UNUSUAL = re.compile(r"[^A-Za-z0-9_-]")


class ResponsesTool(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function"
    name: str = ""
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(NULL)
    strict: bool | None = None
    format: CustomFormat | None = None
    tools: list[ResponsesTool] | None = None
    execution: str | None = None


class DeclaredTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that a client carries out, and the namespace that it is in."""

    tool: ResponsesTool
    namespace: str | None = None

    @property
    def call_kind(self) -> str:
        """The type of the items that are its calls."""
        return _CALL_KINDS[self.tool.type]


_CALL_KINDS = {"function": "function_call", "custom": "custom_tool_call", TOOL_SEARCH: "tool_search_call"}


class _DeclaringItem(msgspec.Struct, frozen=True, kw_only=True):
    type: str | None = None
    tools: list[ResponsesTool] | None = None


_TOOLS = msgspec.json.Decoder(list[ResponsesTool])
_ITEMS = msgspec.json.Decoder(list[_DeclaringItem])


class CallableTools(Mapping[str, DeclaredTool]):
    """The tools of a request by the names that a model calls them by. Of tools with the same name the last one counts."""

    def __init__(self, tools: Iterable[ResponsesTool] = ()) -> None:
        self._tools: dict[str, DeclaredTool] = {}
        for declared in _declared(tools, None):
            self._tools[callable_name(declared.tool.name, declared.namespace)] = declared

    def __getitem__(self, name: str) -> DeclaredTool:
        return self._tools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def functions(self) -> Iterator[Tool]:
        """The tools as functions."""
        for name, declared in self._tools.items():
            tool = declared.tool
            if tool.type == "custom":
                yield as_function(name, tool.description, tool.format)
                continue
            raw = bytes(tool.parameters)
            parameters = None if raw == NULL else msgspec.Raw(raw)
            yield Tool(name=name, description=tool.description, parameters=parameters, strict=tool.strict)


def callable_tools(members: Mapping[str, Any], body: bytes) -> CallableTools:
    """The tools that need more than their names in a response: all of a request, if it may have custom ones or namespaces.
    `members` are those of its body."""
    if not any(mark in body for mark in _MARKS):
        return CallableTools()
    tools: list[ResponsesTool] = []
    try:
        if (raw := members.get("tools")) is not None:
            tools += _TOOLS.decode(raw)
        if (raw := members.get("input")) is not None and any(mark in body for mark in _DECLARING):
            tools += [tool for item in _ITEMS.decode(raw) for tool in item.tools or ()]
    except NOT_JSON:
        return CallableTools()
    return CallableTools(tools)


def callable_name(name: str, namespace: str | None) -> str:
    """The name of a function by which a model calls a tool. Outside a namespace it is the tool's own, whatever it is."""
    if not namespace:
        return name
    joined = namespace + ("" if namespace.endswith("__") else "__") + name
    usual = _UNUSUAL.sub("_", joined)
    if usual == joined and len(joined) <= _LONGEST_NAME:
        return joined
    digest = hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{usual[: _LONGEST_NAME - 9]}_{digest}"


def has_further_tools(body: bytes) -> bool:
    """Whether a request may have tools in namespaces, searches for tools, or calls of either."""
    return b'"namespace"' in body or b'"tool_search' in body


def _declared(tools: Iterable[ResponsesTool], namespace: str | None) -> Iterator[DeclaredTool]:
    for tool in tools:
        if tool.type == _NAMESPACE and namespace is None:
            yield from _declared(tool.tools or (), tool.name)
        elif tool.type in KINDS:
            yield DeclaredTool(tool=tool, namespace=namespace)
        elif tool.type == TOOL_SEARCH and tool.execution == "client":
            yield DeclaredTool(tool=msgspec.structs.replace(tool, name=TOOL_SEARCH))
