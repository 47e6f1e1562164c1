"""Parses an engine's response on its own routes: forwards the bytes and picks out usage, finish and errors."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hostler.adapters import lenient, sse
from hostler.adapters.base import Parser, raise_after
from hostler.adapters.canonical import Chunk, ResponseHead, Usage
from hostler.adapters.error_body import error_in_response, flat_error, is_error
from hostler.adapters.errors import (
    GatewayError,
    empty_response,
    incomplete_response,
    invalid_event,
    invalid_response,
    truncated_response,
)
from hostler.adapters.held_chunks import HeldChunks
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.llamacpp.schema import WIRE, LlamaEvent
from hostler.adapters.openai.chunks import prompt_status

# A whole response is kept up to this size, in bytes, to find its usage.
_MAX_KEPT = 256 * 1024
_STARTS = frozenset({b"{", b"[", b""})
_ENDS = frozenset({b"}", b"]"})
_TAIL = 64
# So many events without anything in them are held back before the first token.
_MAX_HELD = 16
_NOTHING = frozenset({b"", b"null"})
_NO_WORDS = _NOTHING | {b'""'}

_decode = lenient.decoder(LlamaEvent)
_decode_list = lenient.decoder(list[LlamaEvent])


class LlamaCppParser(Parser):
    """Parses one response. A stream is complete when `responses` completions in it have stopped: there is no `[DONE]`.

    With 0 the client has chosen the fields, and the end may be left out. `strips_progress`: the gateway has asked for
    the progress of reading the prompt, not the client.
    """

    def __init__(self, *, responses: int = 0, strips_progress: bool = False) -> None:
        self._responses = responses
        self._strips_progress = strips_progress
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def start(self, head: ResponseHead) -> None:
        self._is_body = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._splitter = sse.EventSplitter()
        self._stopped: set[int] = set()
        self._usage = Usage()
        self._body = bytearray()
        self._size = 0
        self._length = head.length
        self._tail = b""
        self._started = False
        self._held = HeldChunks()
        self._predicted = 0
        self.prompt = None
        self.is_silent = False

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._is_body:
            if not self._size and data.lstrip()[:1] not in _STARTS:
                raise invalid_response()
            self._size += len(data)
            if self._size <= _MAX_KEPT:
                self._body += data
            else:
                self._tail = data[-_TAIL:].strip()[-1:] or self._tail
            return (Chunk(wire=WIRE, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        if not block:
            return ()
        return self._read(block)

    def take_signs(self) -> bytes:
        return self._held.take_signs()

    def finish(self) -> Iterable[Chunk]:
        if self._is_body:
            return self._finish_body()
        chunks: list[Chunk] = []
        rest = self._splitter.remainder()
        if rest:
            chunks += self._read(rest.rstrip(b"\r\n") + b"\n\n")
        if len(self._stopped) < self._responses or not self._started:
            raise incomplete_response()
        return [*chunks, *self._held.take()]

    def _read(self, block: bytes) -> Iterable[Chunk]:
        kept: list[bytes] = []
        finish: str | None = None
        usage: Usage | None = None
        are_signs = self.is_silent = True
        for event in sse.split(block):
            _, data = sse.parse(event)
            if data is None:
                kept.append(event)
                continue
            try:
                parsed = _decode(data)
            except msgspec.ValidationError:
                if (error := flat_error(data)) is not None:
                    return self._raise_after(kept, finish, usage, error)
                kept.append(event)  # JSON of another shape: forwarded as it is
                are_signs = self.is_silent = False
                continue
            except NOT_JSON:
                return self._raise_after(kept, finish, usage, invalid_event())
            if is_error(parsed.error):
                return self._raise_after(kept, finish, usage, error_in_response(data))
            if b'"error' in data and (error := flat_error(data)) is not None:
                return self._raise_after(kept, finish, usage, error)
            if (progress := parsed.prompt_progress) is not None:
                self.prompt = prompt_status(progress)
                if not self._strips_progress:
                    kept.append(event)
                continue
            kept.append(event)
            are_signs = False
            self.is_silent = self.is_silent and self._is_silent_event(parsed)
            if parsed.stop:
                self._stopped.add(parsed.index)
                self._usage = usage = _add_usage(self._usage, parsed)
                finish = _finish(parsed)
        if kept and are_signs:
            self._held.add_sign(WIRE, b"".join(kept))
            return []
        if self.is_silent and not self._started:
            # Before the first token these are held, too: another backend may still answer.
            if self._held.openings < _MAX_HELD:
                self._held.add([Chunk(wire=WIRE, raw=b"".join(kept))] if kept else [])
            return []
        return self._complete(kept, finish, usage)

    def _is_silent_event(self, event: LlamaEvent) -> bool:
        """Whether an event only keeps the connection alive: without text, and no token more than in the last one, which is
        not known of fields that the client has chosen."""
        last, self._predicted = self._predicted, event.tokens_predicted
        if not self._responses or event.stop or event.timings is not None or last != self._predicted:
            return False
        return bytes(event.content) in _NO_WORDS

    def _complete(self, kept: list[bytes], finish: str | None, usage: Usage | None) -> list[Chunk]:
        if not kept:
            return []
        self._started = True
        return [*self._held.take(), Chunk(wire=WIRE, raw=b"".join(kept), finish=finish, usage=usage)]

    def _raise_after(
        self, kept: list[bytes], finish: str | None, usage: Usage | None, error: GatewayError
    ) -> Iterable[Chunk]:
        if not self._started:
            # Nothing was passed on yet, so another backend may still answer.
            raise error
        return raise_after(self._complete(kept, finish, usage), error)

    def _finish_body(self) -> Iterable[Chunk]:
        if self._length is not None and self._size != self._length:
            raise truncated_response(self._size, self._length)
        if self._size > _MAX_KEPT:
            if self._tail not in _ENDS:
                raise incomplete_response()
            return ()
        data = bytes(self._body)
        if not data.strip():
            raise empty_response()
        if b'"error' in data and (error := flat_error(data)) is not None:
            raise error
        try:
            completions = _decode_list(data) if data.lstrip().startswith(b"[") else [_decode(data)]
        except NOT_JSON:
            raise invalid_response() from None
        usage = Usage()
        if any(is_error(completion.error) for completion in completions):
            raise error_in_response(data)
        if self._responses and (not completions or any(bytes(each.content) in _NOTHING for each in completions)):
            raise invalid_response()
        for completion in completions:
            usage = _add_usage(usage, completion)
        finish = _finish(completions[-1]) if completions and completions[-1].stop else None
        return (Chunk(wire=WIRE, is_body=True, finish=finish, usage=usage),)


def _add_usage(known: Usage, event: LlamaEvent) -> Usage:
    timings = event.timings
    return Usage(
        prompt_tokens=known.prompt_tokens + event.tokens_evaluated,
        completion_tokens=known.completion_tokens + event.tokens_predicted,
        cached_tokens=known.cached_tokens + (timings.cache_n if timings else 0),
        prompt_ms=timings.prompt_ms if timings else known.prompt_ms,
        completion_ms=timings.predicted_ms if timings else known.completion_ms,
    )


def _finish(event: LlamaEvent) -> str:
    return "length" if event.stop_type == "limit" else "stop"
