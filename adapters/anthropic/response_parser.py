"""Parses a backend's response in Anthropic's protocol: forwards the bytes, or decodes them for other protocols."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hostler.adapters import sse
from hostler.adapters.anthropic.schema import (
    WIRE,
    AnthropicEvent,
    AnthropicResponse,
    AnthropicResponseBlock,
    AnthropicUsage,
)
from hostler.adapters.base import Parser, raise_after
from hostler.adapters.canonical import Chunk, ResponseHead, ToolCall, Usage
from hostler.adapters.errors import (
    GatewayError,
    incomplete_response,
    invalid_event,
    invalid_response,
    oversized_response,
    reported_error,
    truncated_response,
)
from hostler.adapters.json_body import NOT_JSON

_MAX_BODY = 64 * 1024 * 1024
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# Events before the first token are held back up to this size, in bytes: keep-alives may go on for as long as a backend
# thinks.
_OPENING_EVENTS = frozenset({"message_start", "ping"})
_MAX_HELD = 1024 * 1024

_decode = msgspec.json.Decoder(AnthropicEvent).decode
_decode_body = msgspec.json.Decoder(AnthropicResponse).decode


class AnthropicParser(Parser):
    """Parses one response. A stream is complete with `message_stop`, a whole response when the connection ends.

    With `fields`, chunks have the decoded content and no bytes; without, the bytes and `finish` and `usage`.
    """

    def __init__(self, *, fields: bool = False) -> None:
        self._fields = fields
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def start(self, head: ResponseHead) -> None:
        self._head = head
        self._is_body = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._splitter = sse.EventSplitter()
        self._body = bytearray()
        self._usage = AnthropicUsage()
        self._calls: dict[int, int] = {}
        self._empty_calls: set[int] = set()
        self._held = b""
        self._started = False
        self._done = False

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._is_body:
            self._body += data
            if len(self._body) > _MAX_BODY:
                raise oversized_response(_MAX_BODY)
            return () if self._fields else (Chunk(wire=WIRE, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        return self._read(block) if block else ()

    def finish(self) -> Iterable[Chunk]:
        if self._is_body:
            return self._finish_body()
        rest = self._splitter.remainder()
        chunks = list(self._read(rest.rstrip(b"\r\n") + b"\n\n")) if rest and not self._done else []
        if not self._done:
            raise incomplete_response()
        return chunks

    def _read(self, block: bytes) -> Iterable[Chunk]:
        chunks: list[Chunk] = []
        try:
            for event in sse.split(block):
                chunk = self._parse(event)
                if chunk is not None:
                    chunks.append(chunk)
        except GatewayError as error:
            if not self._started:
                # Nothing was passed on yet, so another backend may still answer.
                raise
            return raise_after(chunks, error)
        self._started = self._started or bool(chunks)
        return chunks

    def _parse(self, event: bytes) -> Chunk | None:
        name, data = sse.parse(event)
        if data is None:
            # Comments are forwarded in their place: before the first token together with it, and also after the end.
            return None if self._fields else self._forward("ping", event, Chunk(wire=WIRE))
        if self._done:
            return None
        try:
            body = _decode(data)
        except msgspec.ValidationError:
            # JSON of another shape: an event of a newer version.
            body = AnthropicEvent(type=name)
        except NOT_JSON:
            raise invalid_event() from None
        kind = body.type or name
        if kind == "error":
            raise reported_error(body.error.message if body.error is not None else None)
        chunk = self._decode_event(kind, body)
        if self._fields:
            has_content = chunk.text or chunk.reasoning or chunk.tool_calls or chunk.finish or chunk.usage
            return chunk if has_content else None
        return self._forward(kind, event, chunk)

    def _forward(self, kind: str, event: bytes, chunk: Chunk) -> Chunk | None:
        if not self._started and kind in _OPENING_EVENTS:
            if len(self._held) <= _MAX_HELD:
                self._held += event
            return None
        raw, self._held = self._held + event, b""
        self._started = True
        return Chunk(wire=WIRE, raw=raw, finish=chunk.finish, usage=chunk.usage)

    def _decode_event(self, kind: str, body: AnthropicEvent) -> Chunk:
        chunk = Chunk(wire=WIRE)
        if kind == "message_start" and body.message is not None:
            self._usage = body.message.usage or self._usage
        elif kind == "content_block_start" and body.content_block is not None:
            self._start_block(body.index, body.content_block, chunk)
        elif kind == "content_block_delta" and body.delta is not None:
            chunk.text = body.delta.text or ""
            chunk.reasoning = body.delta.thinking or ""
            if body.delta.partial_json and body.index in self._calls:
                self._empty_calls.discard(body.index)
                chunk.tool_calls = (ToolCall(index=self._calls[body.index], arguments=body.delta.partial_json),)
        elif kind == "content_block_stop" and body.index in self._empty_calls:
            chunk.tool_calls = (ToolCall(index=self._calls[body.index], arguments="{}"),)
        elif kind == "message_delta":
            self._usage = self._usage.updated(body.usage)
            chunk.usage = _usage(self._usage)
            if body.delta is not None and body.delta.stop_reason:
                chunk.finish = _FINISH.get(body.delta.stop_reason, body.delta.stop_reason)
                chunk.stop = body.delta.stop_sequence
        elif kind == "message_stop":
            self._done = True
        return chunk

    def _start_block(self, index: int, block: AnthropicResponseBlock, chunk: Chunk) -> None:
        chunk.text = block.text or ""
        chunk.reasoning = block.thinking or ""
        if block.type == "tool_use":
            call_index = self._calls[index] = len(self._calls)
            self._empty_calls.add(index)
            chunk.tool_calls = (ToolCall(index=call_index, id=block.id, name=block.name),)

    def _finish_body(self) -> Iterable[Chunk]:
        length = self._head.length
        if length is not None and len(self._body) != length:
            raise truncated_response(len(self._body), length)
        try:
            body = _decode_body(self._body)
            blocks = [block for block in body.content or () if block.type == "tool_use"]
            calls = tuple(
                ToolCall(index=index, id=block.id, name=block.name, arguments=bytes(block.input).decode())
                for index, block in enumerate(blocks)
            )
        except NOT_JSON:
            if not self._fields:
                return ()
            raise invalid_response() from None
        chunk = Chunk(wire=WIRE, is_body=True)
        if body.input_tokens is not None:
            chunk.usage = Usage(prompt_tokens=body.input_tokens)
        elif body.usage is not None:
            chunk.usage = _usage(body.usage)
        if body.stop_reason:
            chunk.finish = _FINISH.get(body.stop_reason, body.stop_reason)
            chunk.stop = body.stop_sequence
        if self._fields:
            chunk.text = "".join(block.text or "" for block in body.content or ())
            chunk.reasoning = "".join(block.thinking or "" for block in body.content or ())
            chunk.tool_calls = calls
        return (chunk,)


def _usage(body: AnthropicUsage) -> Usage:
    cached = body.cache_read_input_tokens or 0
    return Usage(
        prompt_tokens=(body.input_tokens or 0) + cached + (body.cache_creation_input_tokens or 0),
        completion_tokens=body.output_tokens or 0,
        cached_tokens=cached,
    )
