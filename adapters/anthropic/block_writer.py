"""Writes chunks as content blocks, one after the other, whatever order their pieces come in."""

from __future__ import annotations

from collections import deque
from typing import Any

from hostler.adapters.canonical import Chunk, ToolCall
from hostler.adapters.tool_calls import ObjectEnd

TEXT, THINKING, TOOL = "text", "thinking", "tool_use"

_Event = dict[str, Any]


class OpenBlock:
    """A block that waits for the blocks before it, or has been `started`."""

    __slots__ = ("_end", "id", "kind", "name", "number", "pieces", "started")

    def __init__(self, kind: str, number: int = 0) -> None:
        self.kind = kind
        self.number = number
        self.id: str | None = None
        self.name = ""
        self.pieces: list[str] = []
        self.started = False
        self._end = ObjectEnd() if kind == TOOL else None

    def add(self, piece: str) -> None:
        """Add the next piece."""
        self.pieces.append(piece)
        if self._end is not None:
            self._end.feed(piece)

    def is_complete(self) -> bool:
        """Whether nothing more can belong to it: the arguments of a tool call are one JSON object."""
        return self._end is None or self._end.is_complete


class BlockWriter:
    """The blocks of one response. Readers rely on a block being stopped before the next one starts.

    Pieces of another block that come while a call's arguments are incomplete are held back.
    """

    __slots__ = ("_calls", "_count", "_current", "_index", "_response_id", "_waiting", "has_tool_calls")

    def __init__(self, response_id: str) -> None:
        self._response_id = response_id
        self._current: OpenBlock | None = None
        self._waiting: deque[OpenBlock] = deque()
        self._calls: dict[int, OpenBlock] = {}
        self._count = 0
        self._index = -1
        self.has_tool_calls = False

    def add(self, chunk: Chunk) -> list[_Event]:
        """The events for this chunk."""
        events: list[_Event] = []
        if chunk.reasoning:
            self._add_text(THINKING, chunk.reasoning, events)
        if chunk.text:
            self._add_text(TEXT, chunk.text, events)
        for call in chunk.tool_calls:
            self._add_call(call, events)
        return events

    def finish(self) -> list[_Event]:
        """The events that complete the content."""
        events: list[_Event] = []
        self._stop_current(events)
        for block in self._waiting:
            self._start(block, events)
            self._stop_current(events)
        self._waiting.clear()
        return events

    def _add_text(self, kind: str, piece: str, events: list[_Event]) -> None:
        current = self._current
        if current is not None and current.kind == kind and not self._waiting:
            events.append(self._delta(current, piece))
        elif self._waiting and self._waiting[-1].kind == kind:
            self._waiting[-1].add(piece)
            self._advance(events)
        else:
            block = OpenBlock(kind)
            block.add(piece)
            self._waiting.append(block)
            self._advance(events)

    def _add_call(self, call: ToolCall, events: list[_Event]) -> None:
        self.has_tool_calls = True
        block = self._calls.get(call.index)
        if block is None:
            self._count += 1
            block = self._calls[call.index] = OpenBlock(TOOL, self._count)
            self._waiting.append(block)
            block.name, block.id = call.name or "", call.id
        if block is self._current:
            block.add(call.arguments)
            if call.arguments:
                events.append(self._delta(block, call.arguments))
        elif not block.started:
            block.add(call.arguments)
            self._advance(events)

    def _advance(self, events: list[_Event]) -> None:
        """Write the waiting blocks, as long as the current one is complete."""
        while self._waiting and (self._current is None or self._current.is_complete()):
            self._stop_current(events)
            self._start(self._waiting.popleft(), events)

    def _start(self, block: OpenBlock, events: list[_Event]) -> None:
        self._index += 1
        self._current, block.started = block, True
        content: dict[str, Any] = {"type": block.kind}
        if block.kind == TEXT:
            content["text"] = ""
        elif block.kind == THINKING:
            content |= {"thinking": "", "signature": ""}
        else:
            block.id = block.id or f"toolu_{self._response_id}_{block.number}"
            content |= {"id": block.id, "name": block.name, "input": {}}
        events.append({"type": "content_block_start", "index": self._index, "content_block": content})
        held = "".join(block.pieces)
        if held:
            events.append(self._delta(block, held))

    def _stop_current(self, events: list[_Event]) -> None:
        if self._current is None:
            return
        if self._current.kind == THINKING:
            # Clients keep thinking only with a signature. It is never checked here.
            signature = {"type": "signature_delta", "signature": ""}
            events.append({"type": "content_block_delta", "index": self._index, "delta": signature})
        events.append({"type": "content_block_stop", "index": self._index})
        self._current = None

    def _delta(self, block: OpenBlock, piece: str) -> _Event:
        if block.kind == TEXT:
            delta = {"type": "text_delta", "text": piece}
        elif block.kind == THINKING:
            delta = {"type": "thinking_delta", "thinking": piece}
        else:
            delta = {"type": "input_json_delta", "partial_json": piece}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}
