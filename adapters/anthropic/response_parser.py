"""Parses a backend's response in Anthropic's protocol: forwards the bytes, or decodes them for other protocols."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hostler.adapters import lenient, sse
from hostler.adapters.anthropic.schema import (
    WIRE,
    AnthropicEvent,
    AnthropicResponse,
    AnthropicResponseBlock,
    AnthropicUsage,
)
from hostler.adapters.base import Parser, raise_after
from hostler.adapters.canonical import Chunk, ResponseHead, Usage
from hostler.adapters.error_body import error_in_response, flat_error, is_error
from hostler.adapters.errors import (
    AnswerTooLarge,
    GatewayError,
    empty_response,
    incomplete_response,
    invalid_event,
    invalid_response,
    truncated_response,
)
from hostler.adapters.held_chunks import HeldChunks
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.silence import says_nothing
from hostler.adapters.tool_calls import CallPiece, ToolCallReader

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
_EVENTS = frozenset(
    {
        *("ping", "message_start", "message_delta", "message_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
    }
)
# Events that open a response are held back up to this number.
_MAX_HELD = 16
_STARTS = frozenset({b"{", b""})

_decode = lenient.decoder(AnthropicEvent)
_decode_body = lenient.decoder(AnthropicResponse)


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
        self._calls = ToolCallReader()
        self._call_blocks: set[int] = set()
        self._has_stop_reason = False
        self._held = HeldChunks()
        self._started = False
        self._done = False
        self.is_silent = False

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._is_body:
            if not self._body and data.lstrip()[:1] not in _STARTS:
                raise invalid_response()
            self._body += data
            if len(self._body) > _MAX_BODY:
                raise AnswerTooLarge(_MAX_BODY)
            return () if self._fields else (Chunk(wire=WIRE, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        return self._read(block) if block else ()

    def take_signs(self) -> bytes:
        return self._held.take_signs()

    def finish(self) -> Iterable[Chunk]:
        if self._is_body:
            return self._finish_body()
        rest = self._splitter.remainder()
        chunks = list(self._read(rest.rstrip(b"\r\n") + b"\n\n")) if rest and not self._done else []
        if not self._done:
            raise incomplete_response()
        return [*chunks, *self._held.take()]

    def _read(self, block: bytes) -> Iterable[Chunk]:
        chunks: list[Chunk] = []
        self.is_silent = True
        try:
            for event in sse.split(block):
                chunks += self._parse(event)
        except GatewayError as error:
            if not self._started:
                # Nothing was passed on yet, so another backend may still answer.
                raise
            return raise_after(chunks, error)
        self._started = self._started or bool(chunks)
        return chunks

    def _parse(self, event: bytes) -> list[Chunk]:
        name, data = sse.parse(event)
        if data is None:
            # Comments are forwarded in their place, also after the end.
            return self._forward("ping", event, Chunk(wire=WIRE))
        if self._done:
            return []
        try:
            body = _decode(data)
        except msgspec.ValidationError:
            # JSON of another shape: an event of a newer version.
            body = AnthropicEvent(type=name)
        except NOT_JSON:
            raise invalid_event() from None
        kind = body.type or name
        if kind == "error" or is_error(body.error):
            raise error_in_response(data)
        if kind not in _EVENTS and not self._started:
            # With a type of its own it is an event of a newer version.
            error = flat_error(data) or (None if kind else invalid_event())
            if error is not None:
                raise error
        if kind == "message_stop" and not self._has_stop_reason:
            raise incomplete_response()
        try:
            chunk = self._decode_event(kind, body)
        except UnicodeError:
            raise invalid_event() from None
        nothing = not (chunk.text or chunk.reasoning or chunk.tool_calls) and kind == "content_block_delta"
        self.is_silent = self.is_silent and (kind == "ping" or (nothing and says_nothing(data)))
        if self._fields:
            has_content = chunk.text or chunk.reasoning or chunk.tool_calls or chunk.finish or chunk.usage
            return [chunk] if has_content else []
        return self._forward(kind, event, chunk)

    def _forward(self, kind: str, event: bytes, chunk: Chunk) -> list[Chunk]:
        """The event and what was held back before it; nothing for signs of life and for what only opens the response."""
        if self._fields:
            return []
        if kind == "ping":
            self._held.add_sign(WIRE, event)
            return []
        forwarded = Chunk(wire=WIRE, raw=event, finish=chunk.finish, usage=chunk.usage)
        is_opening = kind == "message_start" or kind not in _EVENTS
        if not self._started and is_opening and self._held.openings < _MAX_HELD:
            self._held.add([forwarded])
            return []
        self._started = True
        return [*self._held.take(), forwarded] if self._held else [forwarded]

    def _decode_event(self, kind: str, body: AnthropicEvent) -> Chunk:
        chunk = Chunk(wire=WIRE)
        if kind == "message_start" and body.message is not None:
            self._usage = body.message.usage or self._usage
        elif kind == "content_block_start" and body.content_block is not None:
            self._start_block(body.index, body.content_block, chunk)
        elif kind == "content_block_delta" and body.delta is not None:
            chunk.text = body.delta.text or ""
            chunk.reasoning = body.delta.thinking or ""
            if body.delta.partial_json and body.index in self._call_blocks:
                chunk.tool_calls = self._calls.read([CallPiece(body.index, arguments=body.delta.partial_json)])
        elif kind == "message_delta":
            self._usage = self._usage.updated(body.usage)
            chunk.usage = _usage(self._usage)
            if body.delta is not None and body.delta.stop_reason:
                self._has_stop_reason = True
                chunk.tool_calls = self._calls.finish()
                chunk.finish = _FINISH.get(body.delta.stop_reason, body.delta.stop_reason)
                chunk.stop = body.delta.stop_sequence
        elif kind == "message_stop":
            self._done = True
        return chunk

    def _start_block(self, index: int, block: AnthropicResponseBlock, chunk: Chunk) -> None:
        chunk.text = block.text or ""
        chunk.reasoning = block.thinking or ""
        if block.type == "tool_use":
            self._call_blocks.add(index)
            chunk.tool_calls = self._calls.read([CallPiece(index, block.id, block.name, block.input)])
        else:
            self._call_blocks.discard(index)

    def _finish_body(self) -> Iterable[Chunk]:
        length = self._head.length
        if length is not None and len(self._body) != length:
            raise truncated_response(len(self._body), length)
        data = bytes(self._body)
        if not data.strip():
            raise empty_response()
        try:
            body = _decode_body(data)
        except NOT_JSON:
            raise invalid_response() from None
        if is_error(body.error):
            raise error_in_response(data)
        if body.input_tokens is None and (body.content is None or not (body.content or body.stop_reason)):
            raise invalid_response()
        chunk = Chunk(wire=WIRE, is_body=True)
        if body.input_tokens is not None:
            chunk.usage = Usage(prompt_tokens=body.input_tokens)
        elif body.usage is not None:
            chunk.usage = _usage(body.usage)
        if body.content and not body.stop_reason:
            # A whole answer without a stop reason is finished all the same.
            chunk.finish = "tool_calls" if any(block.type == "tool_use" for block in body.content) else "stop"
        if body.stop_reason:
            chunk.finish = _FINISH.get(body.stop_reason, body.stop_reason)
            chunk.stop = body.stop_sequence
        if self._fields:
            chunk.text = "".join(block.text or "" for block in body.content or ())
            chunk.reasoning = "".join(block.thinking or "" for block in body.content or ())
            blocks = [block for block in body.content or () if block.type == "tool_use"]
            pieces = [CallPiece(None, block.id, block.name, block.input) for block in blocks]
            try:
                chunk.tool_calls = (*self._calls.read(pieces, whole=True), *self._calls.finish())
            except UnicodeError:
                raise invalid_response() from None
        return (chunk,)


def _usage(body: AnthropicUsage) -> Usage:
    cached = body.cache_read_input_tokens or 0
    return Usage(
        prompt_tokens=(body.input_tokens or 0) + cached + (body.cache_creation_input_tokens or 0),
        completion_tokens=body.output_tokens or 0,
        cached_tokens=cached,
    )
