"""Responses in the form of OpenAI's responses API: items of output, streamed or whole."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import json_body, sse
from hostler.adapters.base import Encoder
from hostler.adapters.canonical import ChatRequest, Chunk, Progress, ResponseHead, ToolCall, Usage
from hostler.adapters.errors import GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.custom_tools import InputReader
from hostler.adapters.openai.encoder import OpenAIEncoder, encode_logprobs
from hostler.adapters.openai.errors import responses_error_events
from hostler.adapters.openai.responses_tools import callable_tools
from hostler.adapters.openai.schema import RESPONSES
from hostler.adapters.openai.stored import MAX_STORED
from hostler.adapters.tool_calls import ObjectEnd

# The request's fields that a response repeats, and their defaults.
_REPEATED: dict[str, Any] = {
    "previous_response_id": None, "instructions": None, "max_output_tokens": None, "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None}, "temperature": None, "text": {"format": {"type": "text"}},
    "tool_choice": "auto", "tools": [], "top_p": None, "truncation": "disabled", "user": None,
}  # fmt: skip

# Calls, and the name of the events with the pieces of their text; those of a search for tools have none.
_CALLS = {
    "function_call": "function_call_arguments",
    "custom_tool_call": "custom_tool_call_input",
    "tool_search_call": None,
}
_PREFIXES = {"function_call": "fc", "custom_tool_call": "ctc", "tool_search_call": "tsc"}

# In the last events of a backend's stream.
_ENDS = (b'"response.completed"', b'"response.incomplete"')

_Event = dict[str, Any]


class OutputItem:
    """An item of the output that may still grow: reasoning, a message, or the call of a function or custom tool.

    `arguments` are those of a call as the model wrote them; `input` reads that of a custom tool from them.
    """

    __slots__ = (
        *("_end", "arguments", "call_id", "id", "index", "input", "is_open", "kind", "logprobs", "name", "namespace"),
        "pieces",
    )

    def __init__(
        self, kind: str, index: int, item_id: str, *, call_id: str = "", name: str = "", namespace: str | None = None
    ) -> None:
        self.kind = kind
        self.index = index
        self.id = item_id
        self.call_id = call_id
        self.name = name
        self.namespace = namespace
        self.pieces: list[str] = []
        self.arguments: list[str] = []
        self._end = ObjectEnd()
        self.input = InputReader() if kind == "custom_tool_call" else None
        self.logprobs: list[dict[str, Any]] = []
        self.is_open = True

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can belong to it when another item has begun."""
        return self.kind not in _CALLS or self._end.is_complete

    @property
    def content_name(self) -> str:
        """What a call has the text of its item in."""
        return "arguments" if self.input is None else "input"

    def add_arguments(self, piece: str) -> str:
        """Add the next piece of a call's arguments; returns what that adds to the text of the item."""
        self.arguments.append(piece)
        self._end.feed(piece)
        text = piece if self.input is None else self.input.feed(piece)
        self.pieces.append(text)
        return text

    def body(self) -> dict[str, Any]:
        status = "in_progress" if self.is_open else "completed"
        if self.kind == "tool_search_call":
            call = {"call_id": self.call_id, "execution": "client", "arguments": self._object()}
            return {"id": self.id, "type": self.kind, "status": status, **call}
        if self.kind in _CALLS:
            call = {self.content_name: self.text, "call_id": self.call_id, "name": self.name}
            where = {} if self.namespace is None else {"namespace": self.namespace}
            return {"id": self.id, "type": self.kind, "status": status, **call, **where}
        content = [] if self.is_open else [self.part()]
        if self.kind == "reasoning":
            return {"id": self.id, "type": self.kind, "status": status, "summary": [], "content": content}
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _object(self) -> dict[str, Any]:
        """The arguments of a call; empty while they are incomplete, and if they are no object."""
        try:
            value = msgspec.json.decode(self.text)
        except NOT_JSON:
            return {}
        return value if isinstance(value, dict) else {}

    def part(self) -> dict[str, Any]:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


class ResponsesEncoder(Encoder):
    """One response. Responses of a backend of this protocol are forwarded by an `OpenAIEncoder`."""

    def __init__(self, request: ChatRequest, *, response_id: str, created: int, progress: str) -> None:
        self._forward = OpenAIEncoder(request, response_id=response_id, created=created, progress=progress)
        self._id = response_id.removeprefix("req-")
        self._created = created
        self._model = request.model or ""
        given = {name: raw for name, raw in json_body.members(request.origin.body).items() if bytes(raw) != b"null"}
        self._repeated = {name: given.get(name, default) for name, default in _REPEATED.items()}
        self._tools = callable_tools(given, request.origin.body)
        self.streaming = request.output.stream
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def set_progress(self, progress: str) -> None:
        self._forward.set_progress(progress)

    def start(self, head: ResponseHead) -> None:
        self._forward.start(head)
        self._forwards = False
        self._body = bytearray()
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"
        self.length = None
        self._items: list[OutputItem] = []
        self._calls: dict[int, OutputItem] = {}
        self._usage = Usage()
        self._finish = "stop"
        self._sequence_number = -1

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.wire == RESPONSES:
            self._forwards = True
            if self.on_response is not None and chunk.raw:
                self._report(chunk)
            return self._forwarded(self._forward.encode(chunk))
        self._usage = chunk.usage or self._usage
        if chunk.index:
            return b""  # this protocol has no alternatives
        self._finish = chunk.finish or self._finish
        return self._encode(self._events(chunk))

    def finish(self) -> bytes:
        if self._forwards:
            if self._body and self.on_response is not None:
                self.on_response(bytes(self._body))
            return self._forwarded(self._forward.finish())
        events = [*self._open_response(), *self._close_items(last=True)]
        response = self._response()
        body = msgspec.json.encode(response)
        if self.on_response is not None:
            self.on_response(body)
        if self.streaming:
            return self._encode([*events, {"type": f"response.{response['status']}", "response": response}])
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        return self._forward.heartbeat(progress)

    def error(self, error: GatewayError) -> bytes:
        if not self.streaming:
            return b""
        return responses_error_events(error, {**self._response(), "store": False}, self._sequence_number + 1)

    def _report(self, chunk: Chunk) -> None:
        """Pass on the whole response, which a backend's stream has at its end, and a whole answer is."""
        assert self.on_response is not None
        if chunk.is_body:
            self._body += chunk.raw
            if len(self._body) > MAX_STORED:
                self.on_response = None
            return
        if not any(mark in chunk.raw for mark in _ENDS):
            return
        for line in chunk.raw.splitlines():
            if line.startswith(b"data:") and any(mark in line for mark in _ENDS):
                try:
                    self.on_response(bytes(json_body.members(line[5:].strip())["response"]))
                except (KeyError, *NOT_JSON):
                    continue

    def _forwarded(self, data: bytes) -> bytes:
        self.media_type, self.length = self._forward.media_type, self._forward.length
        return data

    def _encode(self, events: list[_Event]) -> bytes:
        if not self.streaming:
            return b""
        data = bytearray()
        for event in events:
            self._sequence_number += 1
            name = event["type"]
            numbered = {"type": name, "sequence_number": self._sequence_number, **event}
            data += sse.event(msgspec.json.encode(numbered), name)
        return bytes(data)

    def _events(self, chunk: Chunk) -> list[_Event]:
        """The events that a chunk becomes."""
        events: list[_Event] = []
        if chunk.reasoning or chunk.text or chunk.tool_calls or chunk.logprobs:
            events += self._open_response()
        if chunk.reasoning:
            item = self._open_item("reasoning", events)
            item.pieces.append(chunk.reasoning)
            events.append({"type": "response.reasoning_text.delta", **_position(item), "delta": chunk.reasoning})
        if chunk.text or chunk.logprobs:
            item = self._open_item("message", events)
            tokens = encode_logprobs(chunk.logprobs)
            item.pieces.append(chunk.text)
            item.logprobs += tokens
            delta = {"type": "response.output_text.delta", **_position(item), "delta": chunk.text, "logprobs": tokens}
            events.append(delta)
        for call in chunk.tool_calls:
            item = self._calls.get(call.index) or self._open_call(call, events)
            if call.arguments and (piece := item.add_arguments(call.arguments)) and _CALLS[item.kind]:
                events.append(_call_event("delta", item, delta=piece))
        return events

    def _open_response(self) -> list[_Event]:
        if self._sequence_number >= 0 or not self.streaming:
            return []
        response = self._response(running=True)
        return [{"type": f"response.{status}", "response": response} for status in ("created", "in_progress")]

    def _open_item(self, kind: str, events: list[_Event]) -> OutputItem:
        """The last item if it is open and of this kind, else a new one, before which all others are closed."""
        if self._items and self._items[-1].kind == kind and self._items[-1].is_open:
            return self._items[-1]
        events += self._close_items()
        index = len(self._items)
        item = OutputItem(kind, index, f"{'rs' if kind == 'reasoning' else 'msg'}_{self._id}_{index}")
        self._items.append(item)
        events.append(_item_event("added", item))
        if kind == "message":
            events.append({"type": "response.content_part.added", **_position(item), "part": item.part()})
        return item

    def _open_call(self, call: ToolCall, events: list[_Event]) -> OutputItem:
        events += self._close_items()
        call_id = call.id or f"call_{self._id}_{call.index}"
        index, name, namespace = len(self._items), call.name or "", None
        kind = "function_call"
        if (declared := self._tools.get(name)) is not None:
            kind, name, namespace = declared.call_kind, declared.tool.name, declared.namespace
        item = OutputItem(
            kind, index, f"{_PREFIXES[kind]}_{self._id}_{index}", call_id=call_id, name=name, namespace=namespace
        )
        self._calls[call.index] = item
        self._items.append(item)
        events.append(_item_event("added", item))
        return item

    def _close_items(self, *, last: bool = False) -> list[_Event]:
        """The events that close the open items when another one begins, or with the `last` one. Pieces of several calls
        may alternate: until then a call stays open while its arguments are incomplete."""
        events: list[_Event] = []
        for item in self._items:
            if not item.is_open or not (last or item.is_complete):
                continue
            if item.kind in _CALLS:
                events += self._close_call(item)
            elif item.kind == "reasoning":
                events.append({"type": "response.reasoning_text.done", **_position(item), "text": item.text})
            else:
                done = {**_position(item), "text": item.text, "logprobs": item.logprobs}
                events.append({"type": "response.output_text.done", **done})
                events.append({"type": "response.content_part.done", **_position(item), "part": item.part()})
            item.is_open = False
            events.append(_item_event("done", item))
        return events

    def _close_call(self, item: OutputItem) -> list[_Event]:
        rest = item.input.finish() if item.input is not None else ""
        item.pieces.append(rest)
        if _CALLS[item.kind] is None:
            return []
        events = [_call_event("delta", item, delta=rest)] if rest else []
        name = {"name": item.name} if item.kind == "function_call" else {}
        return [*events, _call_event("done", item, **name, **{item.content_name: item.text})]

    def _response(self, *, running: bool = False) -> dict[str, Any]:
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self._finish)
        usage = self._usage
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if running else "incomplete" if cut else "completed",
            "background": False,
            "error": None,
            "incomplete_details": {"reason": cut} if cut and not running else None,
            "model": self._model,
            "output": [] if running else [item.body() for item in self._items],
            "store": self.on_response is not None,
            **self._repeated,
            "usage": None
            if running
            else {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }


def _position(item: OutputItem) -> dict[str, Any]:
    return {"item_id": item.id, "output_index": item.index, "content_index": 0}


def _call_event(change: str, item: OutputItem, **content: str) -> _Event:
    name = f"response.{_CALLS[item.kind]}.{change}"
    return {"type": name, "item_id": item.id, "output_index": item.index, **content}


def _item_event(change: str, item: OutputItem) -> dict[str, Any]:
    return {"type": f"response.output_item.{change}", "output_index": item.index, "item": item.body()}
