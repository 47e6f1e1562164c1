"""Responses in Anthropic's protocol: events or one message, encoded from chunks of any protocol.

The bytes of a backend of this very protocol are forwarded.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hostler.adapters import lenient, sse
from hostler.adapters.anthropic.block_writer import BlockWriter
from hostler.adapters.anthropic.errors import error_event
from hostler.adapters.anthropic.response_parser import AnthropicParser
from hostler.adapters.anthropic.schema import WIRE
from hostler.adapters.base import Encoder
from hostler.adapters.canonical import ChatRequest, Chunk, Progress, Request, ResponseHead, Usage
from hostler.adapters.errors import GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.progress import ProgressLines

_Event = dict[str, Any]
_encode = msgspec.json.encode
_INVALID_ID_CHARS = re.compile(r"[^A-Za-z0-9_]+")
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_PING = sse.event(b'{"type":"ping"}', "ping")


class AnthropicEncoder(Encoder):
    """A message, streamed or whole."""

    def __init__(self, request: Request, *, response_id: str, progress: str) -> None:
        self._model = request.model or ""
        self._id = _INVALID_ID_CHARS.sub("_", response_id.removeprefix("req-"))
        self._progress = progress
        self._lines = ProgressLines()
        self.streaming = isinstance(request, ChatRequest) and request.output.stream
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def set_progress(self, progress: str) -> None:
        self._progress = progress

    def start(self, head: ResponseHead) -> None:
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"
        self.length = None
        self._head = head
        self._blocks = BlockWriter(self._id)
        self._fold = MessageFold()
        self._usage = Usage()
        self._finish: str | None = None
        self._stop: str | None = None
        self._started = False
        self._pinged = False
        self._forwarded = False
        self._other_form: AnthropicParser | None = None

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.wire == WIRE and chunk.raw and chunk.is_body is not self.streaming:
            self._forwarded = True
            if self._head.media_type:
                self.media_type = self._head.media_type
            if chunk.is_body:
                self.length = self._head.length
            return chunk.raw
        if chunk.wire == WIRE and chunk.raw:
            return self._encode_other_form(chunk)
        if self._other_form is not None:
            return b""  # what the raw bytes say already
        return self._encode_content(chunk)

    def _encode_other_form(self, chunk: Chunk) -> bytes:
        """Bytes of this protocol in the form that the client did not ask for: a stream, or a whole message."""
        if self._other_form is None:
            self._other_form = AnthropicParser(fields=True)
            self._other_form.start(self._head)
        return b"".join(map(self._encode_content, self._other_form.feed(chunk.raw)))

    def _encode_content(self, chunk: Chunk) -> bytes:
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.index or self._forwarded:
            return b""  # this protocol has no alternatives
        self._finish = chunk.finish or self._finish
        self._stop = chunk.stop or self._stop
        return self._write(self._blocks.add(chunk))

    def finish(self) -> bytes:
        if self._forwarded:
            return b""
        data = b""
        if self._other_form is not None:
            data += b"".join(map(self._encode_content, self._other_form.finish()))
        data += self._write([*self._blocks.finish(), *self._last_events()])
        if self.streaming:
            return data
        body = self._fold.result()
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """A comment with the progress, and the protocol's own `ping`."""
        if not self.streaming or self._progress == "off":
            return b""
        comment = sse.comment(self._lines.next(progress))
        return comment if self._progress == "comments" else comment + _PING

    def error(self, error: GatewayError) -> bytes:
        return error_event(error) if self.streaming else b""

    def _write(self, events: list[_Event]) -> bytes:
        if events and not self._started:
            self._started = True
            events = [self._first_event(), *events]
        if not self.streaming:
            for event in events:
                self._fold.add(event)
            return b""
        data = bytearray()
        for event in events:
            data += sse.event(_encode(event), event["type"])
            if event["type"] == "content_block_start" and not self._pinged:
                self._pinged = True
                data += _PING
        return bytes(data)

    def _first_event(self) -> _Event:
        message: dict[str, Any] = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._input_usage(), "output_tokens": 0},
        }
        return {"type": "message_start", "message": message}

    def _last_events(self) -> list[_Event]:
        finish = self._finish or "stop"
        reason = _STOP_REASONS.get(finish, "end_turn")
        if finish == "stop" and self._blocks.has_tool_calls:
            # Some servers do not report that they stopped for a tool.
            reason = "tool_use"
        elif finish == "stop" and self._stop is not None:
            reason = "stop_sequence"
        usage: dict[str, Any] = {**self._input_usage(), "output_tokens": self._usage.completion_tokens}
        if self._usage.reasoning_tokens:
            usage["output_tokens_details"] = {"thinking_tokens": self._usage.reasoning_tokens}
        delta = {"stop_reason": reason, "stop_sequence": self._stop}
        return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def _input_usage(self) -> dict[str, Any]:
        # Cached tokens are not counted again under `input_tokens`.
        cached = min(self._usage.cached_tokens, self._usage.prompt_tokens)
        return {
            "input_tokens": self._usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }


class MessageFold:
    """Folds the events of a stream into the whole message."""

    __slots__ = ("_message", "_pieces")

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._pieces: list[list[str]] = []

    def add(self, event: _Event) -> None:
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
            text = "".join(pieces)
            if block["type"] == "tool_use":
                block["input"] = _arguments(text)
            else:
                block[block["type"]] = text
        return lenient.encode(self._message)


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; empty if they are no object, for example cut off at the token limit."""
    try:
        arguments = lenient.decode_any(text)
    except NOT_JSON:
        return {}
    return arguments if isinstance(arguments, dict) else {}


class CountEncoder(Encoder):
    """The response of `/v1/messages/count_tokens`."""

    def __init__(self) -> None:
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        self.length = None
        self._usage = Usage()

    def encode(self, chunk: Chunk) -> bytes:
        self._usage = chunk.usage or self._usage
        return b""

    def finish(self) -> bytes:
        body = _encode({"input_tokens": self._usage.prompt_tokens})
        self.length = len(body)
        return body
