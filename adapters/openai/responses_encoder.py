"""Answers as OpenAI's responses: an answer that came as a chat told in items, streamed or whole.

What a backend told in this very protocol goes through as it came.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import json_body, sse
from hostler.adapters.base import Encoder
from hostler.adapters.errors import GatewayError
from hostler.adapters.openai.encoder import OpenAIEncoder, encode_logprobs
from hostler.adapters.openai.errors import responses_error_event
from hostler.adapters.openai.schema import RESPONSES
from hostler.adapters.types import ChatRequest, Chunk, Progress, ResponseHead, Usage

_encode = msgspec.json.encode

# What an answer repeats of its request, and what stands there where the request says nothing.
_REPEATED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None}, "temperature": None, "text": {"format": {"type": "text"}},
    "tool_choice": "auto", "tools": [], "top_p": None, "truncation": "disabled", "user": None,
}  # fmt: skip


class OutputItem:
    """A part of the answer that is still growing: thoughts, words, or the call of a tool."""

    __slots__ = ("at", "call_id", "id", "kind", "logprobs", "name", "open", "said")

    def __init__(self, kind: str, at: int, item_id: str, *, call_id: str = "", name: str = "") -> None:
        self.kind = kind
        self.at = at
        self.id = item_id
        self.call_id = call_id
        self.name = name
        self.said: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.open = True

    def body(self) -> dict[str, Any]:
        status, text = "in_progress" if self.open else "completed", "".join(self.said)
        if self.kind == "function_call":
            called = {"arguments": text, "call_id": self.call_id, "name": self.name}
            return {"id": self.id, "type": self.kind, "status": status, **called}
        content = [] if self.open else [self.part()]
        if self.kind == "reasoning":
            return {"id": self.id, "type": self.kind, "status": status, "summary": [], "content": content}
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def part(self) -> dict[str, Any]:
        text = "".join(self.said)
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}


class ResponsesEncoder(Encoder):
    """One answer to one client."""

    def __init__(self, request: ChatRequest, *, response_id: str, created: int, progress: str) -> None:
        self._forward = OpenAIEncoder(request, response_id=response_id, created=created, progress=progress)
        self.streaming = request.output.stream
        self._id = response_id.removeprefix("req-")
        self._created = created
        self._model = request.model or ""
        given = {name: raw for name, raw in json_body.members(request.origin.body).items() if bytes(raw) != b"null"}
        self._repeated = {name: given.get(name, usual) for name, usual in _REPEATED.items()}
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def start(self, head: ResponseHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        self._forward.start(head)
        self._forwards = False
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"
        self._items: list[OutputItem] = []
        self._calls: dict[int, OutputItem] = {}
        self._usage = Usage()
        self._finish = "stop"
        self._number = -1
        self.length = None

    def encode(self, chunk: Chunk) -> bytes:
        """The bytes for the client that this chunk gives; empty while a whole answer is still being folded."""
        if chunk.wire == RESPONSES:
            self._forwards = True
            return self._forwarded(self._forward.encode(chunk))
        self._usage = chunk.usage or self._usage
        if chunk.index:
            return b""  # this protocol has one answer to a request
        self._finish = chunk.finish or self._finish
        return self._written(self._said(chunk))

    def finish(self) -> bytes:
        """What ends the answer: the whole of it."""
        if self._forwards:
            return self._forwarded(self._forward.finish())
        last = [*self._opened(), *self._close()]
        answer = self._answer()
        if self.streaming:
            return self._written([*last, {"type": f"response.{answer['status']}", "response": answer}])
        body = _encode(answer)
        self.length = len(body)
        return body

    def _forwarded(self, data: bytes) -> bytes:
        self.media_type, self.length = self._forward.media_type, self._forward.length
        return data

    def heartbeat(self, progress: Progress) -> bytes:
        """A comment: whoever reads events of this protocol skips it."""
        return self._forward.heartbeat(progress)

    def error(self, error: GatewayError) -> bytes:
        """The error inside the stream, which it ends."""
        return responses_error_event(error, self._number + 1) if self.streaming else b""

    def _written(self, events: list[dict[str, Any]]) -> bytes:
        if not self.streaming:
            return b""
        written = bytearray()
        for event in events:
            self._number += 1
            kind = event["type"]
            told = {"type": kind, "sequence_number": self._number, **event}
            written += sse.event(_encode(told), kind)
        return bytes(written)

    def _said(self, chunk: Chunk) -> list[dict[str, Any]]:
        """The events that a chunk becomes."""
        events: list[dict[str, Any]] = []
        if chunk.reasoning or chunk.text or chunk.tool_calls or chunk.logprobs:
            events += self._opened()
        if chunk.reasoning:
            item = self._item("reasoning", events)
            item.said.append(chunk.reasoning)
            events.append({"type": "response.reasoning_text.delta", **_position(item), "delta": chunk.reasoning})
        if chunk.text or chunk.logprobs:
            item = self._item("message", events)
            tokens = encode_logprobs(chunk.logprobs)
            item.said.append(chunk.text)
            item.logprobs += tokens
            delta = {"type": "response.output_text.delta", **_position(item), "delta": chunk.text, "logprobs": tokens}
            events.append(delta)
        for call in chunk.tool_calls:
            known = self._calls.get(call.index)
            if known is None:
                events += self._close()
                call_id = call.id or f"call_{self._id}_{call.index}"
                number = len(self._items)
                known = OutputItem(
                    "function_call", number, f"fc_{self._id}_{number}", call_id=call_id, name=call.name or ""
                )
                self._calls[call.index] = known
                self._items.append(known)
                events.append(_item_event("added", known))
            if call.arguments:
                known.said.append(call.arguments)
                kind = "response.function_call_arguments.delta"
                events.append({"type": kind, "item_id": known.id, "output_index": known.at, "delta": call.arguments})
        return events

    def _opened(self) -> list[dict[str, Any]]:
        if self._number >= 0 or not self.streaming:
            return []
        answer = self._answer(running=True)
        return [{"type": f"response.{each}", "response": answer} for each in ("created", "in_progress")]

    def _item(self, kind: str, events: list[dict[str, Any]]) -> OutputItem:
        """The item of this kind that is being told: the last one, else a new one, for which the others are closed."""
        if self._items and self._items[-1].kind == kind and self._items[-1].open:
            return self._items[-1]
        events += self._close()
        number = len(self._items)
        item = OutputItem(kind, number, f"{'rs' if kind == 'reasoning' else 'msg'}_{self._id}_{number}")
        self._items.append(item)
        events.append(_item_event("added", item))
        if kind == "message":
            events.append({"type": "response.content_part.added", **_position(item), "part": item.part()})
        return item

    def _close(self) -> list[dict[str, Any]]:
        """The events that end whatever is still open. Calls stay open for their pieces until something else begins."""
        events: list[dict[str, Any]] = []
        for item in self._items:
            if not item.open:
                continue
            text = "".join(item.said)
            if item.kind == "function_call":
                done = {"item_id": item.id, "output_index": item.at, "name": item.name, "arguments": text}
                events.append({"type": "response.function_call_arguments.done", **done})
            elif item.kind == "reasoning":
                events.append({"type": "response.reasoning_text.done", **_position(item), "text": text})
            else:
                done = {**_position(item), "text": text, "logprobs": item.logprobs}
                events.append({"type": "response.output_text.done", **done})
                events.append({"type": "response.content_part.done", **_position(item), "part": item.part()})
            item.open = False
            events.append(_item_event("done", item))
        return events

    def _answer(self, *, running: bool = False) -> dict[str, Any]:
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
            "previous_response_id": None,
            "store": False,
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
    return {"item_id": item.id, "output_index": item.at, "content_index": 0}


def _item_event(what: str, item: OutputItem) -> dict[str, Any]:
    return {"type": f"response.output_item.{what}", "output_index": item.at, "item": item.body()}
