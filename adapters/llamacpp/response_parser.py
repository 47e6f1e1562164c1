"""Parses an engine's response on its own routes: forwards the bytes and picks out usage, finish and errors."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hostler.adapters import lenient, sse
from hostler.adapters.base import Parser, raise_after
from hostler.adapters.canonical import Chunk, ResponseHead, Usage
from hostler.adapters.error_body import error_in_response
from hostler.adapters.errors import (
    GatewayError,
    empty_response,
    incomplete_response,
    invalid_event,
    invalid_response,
)
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.llamacpp.schema import NO_ERROR, WIRE, LlamaEvent

# A whole response is kept up to this size, in bytes, to find its usage.
_MAX_KEPT = 256 * 1024
# Comments before the first token are kept up to this size, in bytes.
_MAX_COMMENTS = 64 * 1024
_STARTS = frozenset({b"{", b"[", b""})

_decode = lenient.decoder(LlamaEvent)
_decode_list = lenient.decoder(list[LlamaEvent])


class LlamaCppParser(Parser):
    """Parses one response. A stream is complete when `responses` completions in it have stopped: there is no `[DONE]`.

    With 0 nothing is known about the stream, and it ends with the connection.
    """

    def __init__(self, *, responses: int = 0) -> None:
        self._responses = responses
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def start(self, head: ResponseHead) -> None:
        self._is_body = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._splitter = sse.EventSplitter()
        self._stopped: set[int] = set()
        self._usage = Usage()
        self._body = bytearray()
        self._size = 0
        self._started = False
        self._comments = b""

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._is_body:
            if self._responses and not self._size and data.lstrip()[:1] not in _STARTS:
                raise invalid_response()
            self._size += len(data)
            if self._size <= _MAX_KEPT:
                self._body += data
            return (Chunk(wire=WIRE, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        if not block:
            return ()
        return self._read(block) if self._responses else (Chunk(wire=WIRE, raw=block),)

    def finish(self) -> Iterable[Chunk]:
        if self._is_body:
            return self._finish_body()
        chunks: list[Chunk] = []
        rest = self._splitter.remainder()
        if rest:
            if not self._responses:
                return (Chunk(wire=WIRE, raw=rest),)
            chunks += self._read(rest.rstrip(b"\r\n") + b"\n\n")
        if len(self._stopped) < self._responses:
            raise incomplete_response()
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
                parsed = _decode(data)
            except msgspec.ValidationError:
                kept.append(event)  # JSON of another shape: forwarded as it is
                continue
            except NOT_JSON:
                return self._raise_after(kept, finish, usage, invalid_event())
            if parsed.error is not NO_ERROR and bytes(parsed.error) != b"null":
                return self._raise_after(kept, finish, usage, error_in_response(data))
            kept.append(event)
            if parsed.stop:
                self._stopped.add(parsed.index)
                self._usage = usage = _add_usage(self._usage, parsed)
                finish = _finish(parsed)
        return self._complete(kept, finish, usage)

    def _complete(self, kept: list[bytes], finish: str | None, usage: Usage | None) -> list[Chunk]:
        if not kept:
            return []
        raw = b"".join(kept)
        if not self._started:
            # Comments before the first token are held back until then: they do not start a response.
            raw = self._comments + raw
            if all(sse.is_comment(event) for event in kept):
                self._comments = raw if len(raw) <= _MAX_COMMENTS else self._comments
                return []
        self._started = True
        return [Chunk(wire=WIRE, raw=raw, finish=finish, usage=usage)]

    def _raise_after(
        self, kept: list[bytes], finish: str | None, usage: Usage | None, error: GatewayError
    ) -> Iterable[Chunk]:
        if not self._started:
            # Nothing was passed on yet, so another backend may still answer.
            raise error
        return raise_after(self._complete(kept, finish, usage), error)

    def _finish_body(self) -> Iterable[Chunk]:
        if not self._responses or self._size > _MAX_KEPT:
            return ()
        data = bytes(self._body)
        if not data.strip():
            raise empty_response()
        try:
            found = _decode_list(data) if data.lstrip().startswith(b"[") else [_decode(data)]
        except NOT_JSON:
            raise invalid_response() from None
        usage = Usage()
        completions = found
        if any(bytes(completion.error) != b"null" for completion in completions):
            raise error_in_response(data)
        if not completions or not all(bytes(completion.content) for completion in completions):
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
