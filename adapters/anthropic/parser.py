"""Reads a backend's answer in Anthropic's protocol: forwards the bytes, or understands them for other protocols."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from hostler.adapters import sse
from hostler.adapters.anthropic.schema import WIRE, AnswerBlock, AnswerUsage, EventBody, WholeBody
from hostler.adapters.base import Parser
from hostler.adapters.errors import BackendBroken, GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.types import Chunk, ResponseHead, ToolCall, Usage

_MAX_WHOLE = 64 * 1024 * 1024
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# What comes before the first word.
_OPENING = frozenset({"message_start", "ping"})
# It is kept up to this size, in bytes: signs of life may go on for as long as a backend thinks.
_MAX_HELD = 1024 * 1024
_decode = msgspec.json.Decoder(EventBody).decode
_decode_whole = msgspec.json.Decoder(WholeBody).decode


class AnthropicParser(Parser):
    """A reader for one answer. A stream is complete with `message_stop`, a whole answer when the connection ends.

    With `fields`, chunks hold what was said and no bytes. Without, they hold the bytes, and `finish` and `usage`.
    """

    def __init__(self, *, fields: bool = False) -> None:
        self._fields = fields
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def start(self, head: ResponseHead) -> None:
        """A new answer begins; nothing of an earlier one is kept."""
        self._head = head
        self._whole = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._splitter = sse.EventSplitter()
        self._body = bytearray()
        self._usage = AnswerUsage()
        self._calls: dict[int, int] = {}
        self._empty: set[int] = set()
        self._held = b""
        self._given = False
        self._done = False

    def feed(self, data: bytes) -> Iterable[Chunk]:
        """The chunks that these bytes complete. Raises `BackendBroken` for an error inside the stream."""
        if self._whole:
            self._body += data
            if len(self._body) > _MAX_WHOLE:
                raise BackendBroken(f"The backend's answer is larger than {_MAX_WHOLE} bytes.")
            return () if self._fields else (Chunk(wire=WIRE, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        return self._read(block) if block else ()

    def finish(self) -> Iterable[Chunk]:
        """The connection ended. Raises `BackendBroken` unless the answer was complete."""
        if self._whole:
            return self._finish_whole()
        rest = self._splitter.remainder()
        chunks = list(self._read(rest.rstrip(b"\r\n") + b"\n\n")) if rest and not self._done else []
        if not self._done:
            raise BackendBroken("The backend's answer ended before it was complete.")
        return chunks

    def _read(self, block: bytes) -> Iterable[Chunk]:
        chunks: list[Chunk] = []
        try:
            for event in sse.split(block):
                chunk = self._event(event)
                if chunk is not None:
                    chunks.append(chunk)
        except GatewayError as error:
            if not self._given:
                # Nothing is out yet: another backend may still answer.
                raise
            return _raising(chunks, error)
        self._given = self._given or bool(chunks)
        return chunks

    def _event(self, event: bytes) -> Chunk | None:
        name, data = sse.parse(event)
        if data is None:
            # A remark is passed on in its place: in front of the first word with it, and behind the end, too.
            return None if self._fields else self._forwarded("ping", event, Chunk(wire=WIRE))
        if self._done:
            return None
        try:
            body = _decode(data)
        except msgspec.ValidationError:
            # JSON of another shape: next month's event.
            body = EventBody(type=name)
        except NOT_JSON:
            raise BackendBroken("The backend's answer holds an event that is not what the protocol allows.") from None
        kind = body.type or name
        if kind == "error":
            raise BackendBroken(_words(body))
        chunk = self._understood(kind, body)
        if self._fields:
            said = chunk.text or chunk.reasoning or chunk.tool_calls or chunk.finish or chunk.usage
            return chunk if said else None
        return self._forwarded(kind, event, chunk)

    def _forwarded(self, kind: str, event: bytes, chunk: Chunk) -> Chunk | None:
        if not self._given and kind in _OPENING:
            if len(self._held) <= _MAX_HELD:
                self._held += event
            return None
        raw, self._held = self._held + event, b""
        self._given = True
        return Chunk(wire=WIRE, raw=raw, finish=chunk.finish, usage=chunk.usage)

    def _understood(self, kind: str, body: EventBody) -> Chunk:
        chunk = Chunk(wire=WIRE)
        if kind == "message_start" and body.message is not None:
            self._usage = body.message.usage or self._usage
        elif kind == "content_block_start" and body.content_block is not None:
            self._begin_block(body.index, body.content_block, chunk)
        elif kind == "content_block_delta" and body.delta is not None:
            chunk.text = body.delta.text or ""
            chunk.reasoning = body.delta.thinking or ""
            if body.delta.partial_json and body.index in self._calls:
                self._empty.discard(body.index)
                chunk.tool_calls = (ToolCall(index=self._calls[body.index], arguments=body.delta.partial_json),)
        elif kind == "content_block_stop" and body.index in self._empty:
            chunk.tool_calls = (ToolCall(index=self._calls[body.index], arguments="{}"),)
        elif kind == "message_delta":
            self._usage = self._usage.then(body.usage)
            chunk.usage = _usage(self._usage)
            if body.delta is not None and body.delta.stop_reason:
                chunk.finish = _FINISH.get(body.delta.stop_reason, body.delta.stop_reason)
                chunk.stop = body.delta.stop_sequence
        elif kind == "message_stop":
            self._done = True
        return chunk

    def _begin_block(self, index: int, block: AnswerBlock, chunk: Chunk) -> None:
        chunk.text = block.text or ""
        chunk.reasoning = block.thinking or ""
        if block.type == "tool_use":
            number = self._calls[index] = len(self._calls)
            self._empty.add(index)
            chunk.tool_calls = (ToolCall(index=number, id=block.id, name=block.name),)

    def _finish_whole(self) -> Iterable[Chunk]:
        length = self._head.length
        if length is not None and len(self._body) != length:
            raise BackendBroken(f"The backend's answer ended after {len(self._body)} of {length} bytes.")
        try:
            body = _decode_whole(self._body)
            called = [block for block in body.content or () if block.type == "tool_use"]
            calls = tuple(
                ToolCall(index=at, id=call.id, name=call.name, arguments=bytes(call.input).decode())
                for at, call in enumerate(called)
            )
        except NOT_JSON:
            if not self._fields:
                return ()
            raise BackendBroken("The backend's answer is not what the protocol allows.") from None
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


def _usage(body: AnswerUsage) -> Usage:
    cached = body.cache_read_input_tokens or 0
    return Usage(
        prompt_tokens=(body.input_tokens or 0) + cached + (body.cache_creation_input_tokens or 0),
        completion_tokens=body.output_tokens or 0,
        cached_tokens=cached,
    )


def _words(body: EventBody) -> str:
    message = body.error.message if body.error is not None else None
    if not isinstance(message, str) or not message.strip():
        return "The backend reported an error in the middle of its answer."
    return "The backend reported an error: " + "".join(c if c.isprintable() else " " for c in message[:500])


def _raising(chunks: list[Chunk], error: GatewayError) -> Iterator[Chunk]:
    yield from chunks
    raise error
