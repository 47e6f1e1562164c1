"""Reads an engine's answer on its own routes: forwards the bytes and notices the counts, the end, and errors in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Parser
from hostler.adapters.errors import BackendBroken, GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.llamacpp.schema import NO_ERROR, WIRE, LlamaError, LlamaEvent
from hostler.adapters.types import Chunk, ResponseHead, Usage

# A whole answer is remembered up to this size, to find its counts.
_REMEMBERED = 256 * 1024
# Remarks in front of the first word are kept up to this size, in bytes.
_MAX_REMARKS = 64 * 1024

_notice = msgspec.json.Decoder(LlamaEvent).decode
_notice_all = msgspec.json.Decoder(LlamaEvent | list[LlamaEvent]).decode
_decode_error = msgspec.json.Decoder(LlamaError).decode


class LlamaCppParser(Parser):
    """A reader for one answer. A stream of completions is complete when `answers` of them have said that they stop.

    There is no `[DONE]`. `answers` of 0 means that nothing is known of the stream: it ends when the connection does.
    """

    def __init__(self, *, answers: int = 0) -> None:
        self._answers = answers
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def start(self, head: ResponseHead) -> None:
        """A new answer begins; nothing of an earlier one is kept."""
        self._whole = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._splitter = sse.EventSplitter()
        self._stopped: set[int] = set()
        self._usage = Usage()
        self._body = bytearray()
        self._size = 0
        self._given = False
        self._remarks = b""

    def feed(self, data: bytes) -> Iterable[Chunk]:
        """The chunks that these bytes complete. Raises `BackendBroken` for an error inside the stream."""
        if self._whole:
            self._size += len(data)
            if self._size <= _REMEMBERED:
                self._body += data
            return (Chunk(wire=WIRE, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        if not block:
            return ()
        return self._read(block) if self._answers else (Chunk(wire=WIRE, raw=block),)

    def finish(self) -> Iterable[Chunk]:
        """The connection ended. Raises `BackendBroken` unless the answer was complete."""
        if self._whole:
            return self._finish_whole()
        chunks: list[Chunk] = []
        rest = self._splitter.remainder()
        if rest:
            if not self._answers:
                return (Chunk(wire=WIRE, raw=rest),)
            chunks += self._read(rest.rstrip(b"\r\n") + b"\n\n")
        if len(self._stopped) < self._answers:
            raise BackendBroken("The backend's answer ended before it was complete.")
        return chunks

    def _read(self, block: bytes) -> Iterable[Chunk]:
        kept: list[bytes] = []
        finish: str | None = None
        usage: Usage | None = None
        for event in sse.split(block):
            _, data = sse.parse(event)
            if data is None:
                kept.append(event)
                continue
            try:
                piece = _notice(data)
            except msgspec.ValidationError:
                kept.append(event)  # JSON of another shape: nothing to notice in it
                continue
            except NOT_JSON:
                broken = BackendBroken("The backend's answer holds an event that is not what the protocol allows.")
                return self._then_raise(kept, finish, usage, broken)
            if piece.error is not NO_ERROR and bytes(piece.error) != b"null":
                return self._then_raise(kept, finish, usage, _broken(piece.error))
            kept.append(event)
            if piece.stop:
                self._stopped.add(piece.index)
                self._usage = usage = _sum(self._usage, piece)
                finish = _finish(piece)
        return self._give(kept, finish, usage)

    def _give(self, kept: list[bytes], finish: str | None, usage: Usage | None) -> list[Chunk]:
        if not kept:
            return []
        raw = b"".join(kept)
        if not self._given:
            # Signs of life in front of the first word are passed on with it: they begin no answer.
            raw = self._remarks + raw
            if all(sse.is_comment(event) for event in kept):
                self._remarks = raw if len(raw) <= _MAX_REMARKS else self._remarks
                return []
        self._given = True
        return [Chunk(wire=WIRE, raw=raw, finish=finish, usage=usage)]

    def _then_raise(
        self, kept: list[bytes], finish: str | None, usage: Usage | None, error: GatewayError
    ) -> Iterable[Chunk]:
        if not self._given:
            # Nothing is out yet: another backend may still answer, so the beginning is not given away.
            raise error
        return _raising(self._give(kept, finish, usage), error)

    def _finish_whole(self) -> Iterable[Chunk]:
        if not self._answers or self._size > _REMEMBERED:
            return ()
        try:
            found = _notice_all(self._body)
        except NOT_JSON:
            return ()
        usage = Usage()
        pieces = found if isinstance(found, list) else [found]
        for piece in pieces:
            usage = _sum(usage, piece)
        finish = _finish(pieces[-1]) if pieces and pieces[-1].stop else None
        return (Chunk(wire=WIRE, is_body=True, finish=finish, usage=usage),)


def _sum(known: Usage, piece: LlamaEvent) -> Usage:
    timings = piece.timings
    return Usage(
        prompt_tokens=known.prompt_tokens + piece.tokens_evaluated,
        completion_tokens=known.completion_tokens + piece.tokens_predicted,
        cached_tokens=known.cached_tokens + (timings.cache_n if timings else 0),
        prompt_ms=timings.prompt_ms if timings else known.prompt_ms,
        completion_ms=timings.predicted_ms if timings else known.completion_ms,
    )


def _finish(piece: LlamaEvent) -> str:
    return "length" if piece.stop_type == "limit" else "stop"


def _broken(raw: msgspec.Raw) -> BackendBroken:
    try:
        error = _decode_error(raw)
    except NOT_JSON:
        error = LlamaError()
    code = error.code if error.code is not None and 400 <= error.code <= 599 else None
    if not error.message.strip():
        return BackendBroken("The backend reported an error in the middle of its answer.", backend_status=code)
    words = "".join(c if c.isprintable() else " " for c in error.message[:500])
    return BackendBroken(f"The backend reported an error: {words}", backend_status=code)


def _raising(chunks: list[Chunk], error: GatewayError) -> Iterator[Chunk]:
    yield from chunks
    raise error
