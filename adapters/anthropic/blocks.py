"""Turns an answer's chunks into content blocks: one after the other, whatever order their pieces come in."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.types import Chunk, ToolCall

_Event = dict[str, Any]
_any = msgspec.json.Decoder().decode

TEXT, THINKING, TOOL = "text", "thinking", "tool_use"


class _Block:
    """A block that is being written, or waits for its turn."""

    __slots__ = ("id", "kind", "name", "number", "pieces")

    def __init__(self, kind: str, number: int = 0) -> None:
        self.kind = kind
        self.number = number
        self.id: str | None = None
        self.name = ""
        self.pieces: list[str] = []

    def complete(self) -> bool:
        """Whether nothing more can belong to it: a tool's arguments are one JSON object."""
        if self.kind != TOOL:
            return True
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        written = "".join(self.pieces)
        if not written.lstrip().startswith("{"):
            return False
        try:
            _any(written)
        except NOT_JSON:
            return False
        return True


class Blocks:
    """The blocks of one answer. Every reader can rely on it that one is stopped before the next one starts.

    Pieces of another block that come while a tool's arguments are incomplete are held back.
    """

    __slots__ = ("_calls", "_count", "_current", "_index", "_response_id", "_waiting", "called")

    def __init__(self, response_id: str) -> None:
        self._response_id = response_id
        self._current: _Block | None = None
        self._waiting: list[_Block] = []
        self._calls: dict[int, _Block] = {}
        self._count = 0
        self._index = -1
        #: Whether a tool was called.
        self.called = False

    def add(self, chunk: Chunk) -> list[_Event]:
        """The events that this chunk gives."""
        events: list[_Event] = []
        if chunk.reasoning:
            self._said(THINKING, chunk.reasoning, events)
        if chunk.text:
            self._said(TEXT, chunk.text, events)
        for call in chunk.tool_calls:
            self._call(call, events)
        return events

    def end(self) -> list[_Event]:
        """The events that complete the answer's content."""
        events: list[_Event] = []
        self._close(events)
        for block in self._waiting:
            self._open(block, events)
            self._close(events)
        self._waiting = []
        return events

    def _said(self, kind: str, piece: str, events: list[_Event]) -> None:
        current = self._current
        if current is not None and current.kind == kind and not self._waiting:
            events.append(self._delta(current, piece))
        elif self._waiting and self._waiting[-1].kind == kind:
            self._waiting[-1].pieces.append(piece)
            self._move_on(events)
        else:
            block = _Block(kind)
            block.pieces.append(piece)
            self._waiting.append(block)
            self._move_on(events)

    def _call(self, call: ToolCall, events: list[_Event]) -> None:
        self.called = True
        block = self._calls.get(call.index)
        if block is None or (call.name and call.id not in (None, block.id) and block.complete()):
            # A new call, also from servers that give every call the same number.
            self._count += 1
            block = self._calls[call.index] = _Block(TOOL, self._count)
            self._waiting.append(block)
        block.name = block.name or call.name or ""
        block.id = block.id or call.id
        if block is self._current:
            block.pieces.append(call.arguments)
            if call.arguments:
                events.append(self._delta(block, call.arguments))
        elif block in self._waiting:
            block.pieces.append(call.arguments)
            self._move_on(events)

    def _move_on(self, events: list[_Event]) -> None:
        """Write what waits, as far as its turn has come."""
        while self._waiting and (self._current is None or self._current.complete()):
            if not self._waiting[0].name and self._waiting[0].kind == TOOL:
                return
            self._close(events)
            self._open(self._waiting.pop(0), events)

    def _open(self, block: _Block, events: list[_Event]) -> None:
        self._index += 1
        self._current = block
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

    def _close(self, events: list[_Event]) -> None:
        if self._current is None:
            return
        if self._current.kind == THINKING:
            # Clients keep a thought only with its signature. Nobody here checks it.
            signature = {"type": "signature_delta", "signature": ""}
            events.append({"type": "content_block_delta", "index": self._index, "delta": signature})
        events.append({"type": "content_block_stop", "index": self._index})
        self._current = None

    def _delta(self, block: _Block, piece: str) -> _Event:
        if block.kind == TEXT:
            delta = {"type": "text_delta", "text": piece}
        elif block.kind == THINKING:
            delta = {"type": "thinking_delta", "thinking": piece}
        else:
            delta = {"type": "input_json_delta", "partial_json": piece}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}
