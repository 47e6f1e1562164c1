"""Answers as Anthropic clients read them: chunks of any protocol written as events, or folded into one message.

A backend of this very protocol has its bytes passed on as they came.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.anthropic.blocks import Blocks
from hostler.adapters.anthropic.errors import error_event
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import Encoder
from hostler.adapters.errors import GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.progress import PREFIX, progress_line
from hostler.adapters.types import ChatRequest, Chunk, Progress, Request, ResponseHead, Usage


class MessageFold:
    """Collects the events of one answer."""

    __slots__ = ("_message", "_pieces")

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._pieces: list[list[str]] = []

    def add(self, event: dict[str, Any]) -> None:
        """Takes in one event."""
        kind = event["type"]
        if kind == "message_start":
            self._message = event["message"]
        elif kind == "content_block_start":
            self._message["content"].append(event["content_block"])
            self._pieces.append([])
        elif kind == "content_block_delta":
            delta = event["delta"]
            piece = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
            if piece:
                self._pieces[event["index"]].append(piece)
        elif kind == "message_delta":
            self._message |= event["delta"]
            self._message["usage"] = event["usage"]

    def result(self) -> bytes:
        """The message as JSON."""
        for block, pieces in zip(self._message["content"], self._pieces, strict=True):
            words = "".join(pieces)
            if block["type"] == "tool_use":
                block["input"] = _arguments(words)
            else:
                block[block["type"]] = words
        return msgspec.json.encode(self._message)


def _arguments(words: str) -> dict[str, Any]:
    """A call's arguments. What is no object (cut off at the limit, for one) cannot be told in a whole answer."""
    try:
        return msgspec.json.decode(words, type=dict[str, Any])
    except NOT_JSON:
        return {}


_encode = msgspec.json.encode
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_]+")
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_PING = sse.event(b'{"type":"ping"}', "ping")


class AnthropicEncoder(Encoder):
    """One answer to one client."""

    def __init__(self, request: Request, *, response_id: str, progress: str) -> None:
        self.streaming = isinstance(request, ChatRequest) and request.output.stream
        self._model = request.model or ""
        self._id = _NOT_IN_IDS.sub("_", response_id.removeprefix("req-"))
        self._progress = progress
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def start(self, head: ResponseHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        self._head = head
        self._blocks = Blocks(self._id)
        self._fold = MessageFold()
        self._usage = Usage()
        self._finish: str | None = None
        self._stop: str | None = None
        self._started = False
        self._pinged = False
        self._forwarded = False
        self.length = None
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"

    def encode(self, chunk: Chunk) -> bytes:
        """The bytes for the client that this chunk gives; empty while a whole answer is still being folded."""
        if chunk.wire == WIRE and chunk.raw and chunk.is_body is not self.streaming:
            self._forwarded = True
            if self._head.media_type:
                self.media_type = self._head.media_type
            if chunk.is_body:
                self.length = self._head.length
            return chunk.raw
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.index or self._forwarded:
            # This protocol has one answer to a request.
            return b""
        self._finish = chunk.finish or self._finish
        self._stop = chunk.stop or self._stop
        return self._written(self._blocks.add(chunk))

    def finish(self) -> bytes:
        """What ends the answer: the folded whole, or the stream's last events."""
        if self._forwarded:
            return b""
        written = self._written([*self._blocks.end(), *self._last()])
        if self.streaming:
            return written
        body = self._fold.result()
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """A sign of life: a comment that says what is being waited for, and the protocol's own `ping`."""
        if not self.streaming or self._progress == "off":
            return b""
        sign = sse.comment(PREFIX + progress_line(progress))
        return sign if self._progress == "comments" else sign + _PING

    def error(self, error: GatewayError) -> bytes:
        """The error inside the stream, which it ends."""
        return error_event(error) if self.streaming else b""

    def _written(self, events: list[dict[str, Any]]) -> bytes:
        if events and not self._started:
            self._started = True
            events = [self._first(), *events]
        if not self.streaming:
            for event in events:
                self._fold.add(event)
            return b""
        written = bytearray()
        for event in events:
            written += sse.event(_encode(event), event["type"])
            if event["type"] == "content_block_start" and not self._pinged:
                self._pinged = True
                written += _PING
        return bytes(written)

    def _first(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._counts(), "output_tokens": 0},
        }
        return {"type": "message_start", "message": message}

    def _last(self) -> list[dict[str, Any]]:
        finish = self._finish or "stop"
        reason = _REASONS.get(finish, "end_turn")
        if finish == "stop" and self._blocks.called:
            # Some servers do not say that they stopped for a tool.
            reason = "tool_use"
        elif finish == "stop" and self._stop is not None:
            reason = "stop_sequence"
        usage: dict[str, Any] = {**self._counts(), "output_tokens": self._usage.completion_tokens}
        if self._usage.reasoning_tokens:
            usage["output_tokens_details"] = {"thinking_tokens": self._usage.reasoning_tokens}
        delta = {"stop_reason": reason, "stop_sequence": self._stop}
        return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def _counts(self) -> dict[str, Any]:
        # What came out of an engine's cache is not counted again under `input_tokens`.
        cached = min(self._usage.cached_tokens, self._usage.prompt_tokens)
        return {
            "input_tokens": self._usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }


class CountEncoder(Encoder):
    """The answer to "how many tokens would this take"."""

    def __init__(self) -> None:
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        """A backend answers."""
        self._usage = Usage()

    def encode(self, chunk: Chunk) -> bytes:
        """Nothing yet: the number is written at the end."""
        self._usage = chunk.usage or self._usage
        return b""

    def finish(self) -> bytes:
        """The number."""
        body = _encode({"input_tokens": self._usage.prompt_tokens})
        self.length = len(body)
        return body
