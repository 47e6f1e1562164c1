"""Reads a backend's answer in OpenAI's protocol: forwards the bytes and notices in passing what must be noticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Parser
from hostler.adapters.errors import BackendBroken, GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.chunks import (
    chunks_of_count,
    chunks_of_embeddings,
    chunks_of_event,
    chunks_of_whole,
    plain_finish,
    says_nothing,
    usage_of,
)
from hostler.adapters.openai.schema import NO_ERROR, RESPONSES, WIRE, ErrorBody, EventBody, NoticedChoice, NoticedEvent
from hostler.adapters.types import Chunk, ResponseHead, Usage

# A whole answer is remembered up to this size, to find its token counts, unless its fields are asked for.
_REMEMBERED = 256 * 1024
_MAX_DECODED = 64 * 1024 * 1024

_STREAM = ResponseHead(media_type=sse.MEDIA_TYPE)
_NULL = b"null"
# Operations whose streams are JSON throughout and end with a sign that they are complete.
_CLOSED = frozenset({"chat", "completions", "responses"})
# What opens an answer without a word of it is held back up to so many chunks: a backend that fails right after it has
# not begun to answer, and another one may.
_MAX_HELD = 16
# Remarks in front of it are kept up to this size, in bytes: they may go on for as long as a backend thinks.
_MAX_REMARKS = 64 * 1024
_READERS = {"embeddings": chunks_of_embeddings, "count": chunks_of_count}
_notice = msgspec.json.Decoder(NoticedEvent).decode
_decode = msgspec.json.Decoder(EventBody).decode
_decode_error = msgspec.json.Decoder(ErrorBody | str | None).decode


class OpenAIParser(Parser):
    """A reader for one answer to a request for `operation`, of `choices` alternatives.

    Chat and completions are complete with `[DONE]` or the last `finish_reason`, responses with their closing event,
    everything else when the connection ends in order. With `fields`, each event is decoded too.
    """

    def __init__(self, operation: str, *, fields: bool = False, choices: int = 1) -> None:
        self._operation = operation
        # Whose bytes are forwarded: chats and responses are not each other's.
        self._wire = RESPONSES if operation == "responses" else WIRE
        self._fields = fields
        self._choices = choices
        self._head: ResponseHead | None = None

    def start(self, head: ResponseHead) -> None:
        """A new answer begins; nothing of an earlier one is kept."""
        self._head = head
        self._size = 0
        self._pieces: list[bytes] = []
        self._whole = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        if self._whole:
            return
        self._splitter = sse.EventSplitter()
        self._finished = 0
        self._done = False
        self._given = False
        self._held: list[Chunk] = []
        self._prompt: Usage | None = None

    def feed(self, data: bytes) -> Iterable[Chunk]:
        """The chunks that these bytes complete. Raises `BackendBroken` for an error inside the stream."""
        if self._head is None:
            self.start(_STREAM)
        if self._whole:
            return self._feed_whole(data)
        block = self._splitter.feed(data)
        if not block:
            return ()
        if self._given and not self._fields and not self._done and _are_next_tokens(block):
            return (Chunk(wire=self._wire, raw=block),)
        return self._read(block)

    def finish(self) -> Iterable[Chunk]:
        """The connection ended. Raises `BackendBroken` unless the answer was complete."""
        head = self._head
        if head is None:
            head = _STREAM
            self.start(head)
        if self._whole:
            return self._finish_whole(head)
        chunks: list[Chunk] = []
        rest = self._splitter.remainder()
        if rest and not self._done:
            # Some servers leave out the last blank line; an event that is cut off is another matter.
            _, data = sse.parse(rest)
            if data != b"[DONE]" and not _is_json(data or b""):
                raise BackendBroken("The backend's answer ended in the middle of an event.")
            chunks += self._read(rest.rstrip(b"\r\n") + b"\n\n")
        if not self._done:
            if self._operation not in _CLOSED:
                return [*self._held, *chunks]
            if self._operation == "responses" or not self._finished or self._finished < self._choices:
                raise BackendBroken("The backend's answer ended before it was complete.")
            self._done = True
            chunks.append(Chunk(wire=self._wire, raw=b"data: [DONE]\n\n"))
        return chunks

    def _read(self, block: bytes) -> Iterable[Chunk]:
        kept: list[bytes] = []
        finish: str | None = None
        usage: Usage | None = None
        chunks: list[Chunk] = []
        wordless = not self._given
        for event in sse.split(block):
            if not wordless and not self._fields and _is_next_token(event):
                kept.append(event)
                continue
            name, data = sse.parse(event)
            if data is None:
                if not (self._fields and sse.is_comment(event)):
                    kept.append(event)
                continue
            if data == b"[DONE]":
                self._done = True
                wordless = False
                kept.append(event)
                continue
            if self._done:
                continue  # only remarks may follow the end
            try:
                body = _decode(data) if self._fields else _notice(data)
            except msgspec.ValidationError:
                # JSON of another shape (llama.cpp sends a bare `null` at times): nothing to notice in it.
                kept.append(event)
                wordless = False
                continue
            except NOT_JSON:
                if self._operation not in _CLOSED:
                    kept.append(event)
                    continue
                broken = BackendBroken("The backend's answer holds an event that is not what the protocol allows.")
                return self._then_raise(kept, chunks, finish, usage, broken)
            error = _error_in(body, name)
            if error is not None:
                return self._then_raise(kept, chunks, finish, usage, error)
            if self._fields and isinstance(body, EventBody) and body.prompt_progress is not None:
                # Asked for on behalf of another protocol: told with the first word, and no word itself.
                read_so_far = body.prompt_progress
                self._prompt = Usage(prompt_tokens=read_so_far.total, cached_tokens=read_so_far.cache)
                continue
            kept.append(event)
            wordless = wordless and b'"prompt_progress"' not in data and _opens(data)
            for choice in body.choices or ():
                if choice.finish_reason:
                    self._finished += 1
                    finish = plain_finish(choice.finish_reason)
            if body.type in ("response.completed", "response.incomplete", "response.failed"):
                self._done = True
                finish = "stop" if body.type == "response.completed" else "length"
                if body.response is not None:
                    usage = usage_of(body.response.usage, body.timings) or usage
            usage = usage_of(body.usage, body.timings) or usage
            if self._fields and isinstance(body, EventBody):
                chunks += chunks_of_event(body)
        if not kept:
            return []
        given = self._give(kept, chunks, finish, usage)
        if wordless and all(sse.is_comment(event) for event in kept):
            self._remark(b"".join(kept))
            return []
        if wordless and len(self._held) < _MAX_HELD:
            self._held += given
            return []
        self._given = True
        held, self._held = self._held, []
        return held + given

    def _remark(self, comments: bytes) -> None:
        """Signs of life in front of the first word are passed on with it, in their place: they begin no answer."""
        if not self._held:
            self._held.append(Chunk(wire=self._wire, raw=comments))
        elif len(self._held[-1].raw) + len(comments) <= _MAX_REMARKS:
            self._held[-1].raw += comments

    def _give(self, kept: list[bytes], chunks: list[Chunk], finish: str | None, usage: Usage | None) -> list[Chunk]:
        if not kept:
            return []
        if self._fields:
            # The bytes ride on the first chunk, so that the same answer serves a client of this protocol too.
            chunks = chunks or [Chunk(wire=self._wire)]
            if finish is not None and all(chunk.finish is None for chunk in chunks):
                chunks[-1].finish = finish
            if usage is not None and all(chunk.usage is None for chunk in chunks):
                chunks[-1].usage = usage
        else:
            chunks = [Chunk(wire=self._wire, finish=finish, usage=usage)]
        if self._prompt is not None and chunks[0].usage is None:
            chunks[0].usage, self._prompt = self._prompt, None
        chunks[0].raw = b"".join(kept)
        return chunks

    def _then_raise(
        self, kept: list[bytes], chunks: list[Chunk], finish: str | None, usage: Usage | None, error: GatewayError
    ) -> Iterable[Chunk]:
        if not self._given:
            # Nothing is out yet: another backend may still answer, so the beginning is not given away.
            raise error
        return _raising(self._give(kept, chunks, finish, usage), error)

    def _feed_whole(self, data: bytes) -> Iterable[Chunk]:
        self._size += len(data)
        limit = _MAX_DECODED if self._fields else _REMEMBERED
        if self._size <= limit:
            self._pieces.append(data)
        elif self._fields:
            raise BackendBroken(f"The backend's answer is larger than {limit} bytes.")
        else:
            self._pieces.clear()
        return () if self._fields else (Chunk(wire=self._wire, raw=data, is_body=True),)

    def _finish_whole(self, head: ResponseHead) -> Iterable[Chunk]:
        length = head.length
        if length is not None and self._size != length:
            raise BackendBroken(f"The backend's answer ended after {self._size} of {length} bytes.")
        raw = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if not raw or not head.media_type.lower().startswith("application/json"):
            return () if not self._fields else (Chunk(wire=self._wire, raw=raw, is_body=True),)
        if self._fields:
            _look_for_error(raw)
            try:
                return _READERS.get(self._operation, chunks_of_whole)(raw)
            except (*NOT_JSON, ValueError):
                raise BackendBroken("The backend's answer is not what the protocol allows.") from None
        try:
            body = _notice(raw)
        except NOT_JSON:
            return ()
        error = _error_in(body, "")
        if error is not None:
            raise error
        finish: str | None = None
        for choice in body.choices or ():
            finish = finish or choice.finish_reason
        usage = usage_of(body.usage, body.timings)
        if finish is None and usage is None:
            return ()
        return (Chunk(wire=self._wire, is_body=True, finish=plain_finish(finish) if finish else None, usage=usage),)


def _look_for_error(whole: bytes) -> None:
    try:
        error = _error_in(_notice(whole), "")
    except NOT_JSON:
        return
    if error is not None:
        raise error


def _is_json(data: bytes) -> bool:
    try:
        _notice(data)
    except msgspec.ValidationError:
        return True
    except NOT_JSON:
        return False
    return True


def _are_next_tokens(block: bytes) -> bool:
    if _is_next_token(block):
        return True
    # Several arrive at a time where a busy machine reads late.
    events = sse.split(block)
    return len(events) > 1 and all(map(_is_next_token, events))


def _is_next_token(block: bytes) -> bool:
    # Nearly every event is the next token and nothing else. Decoding the few fields that could tell otherwise takes
    # a third of a microsecond, less than one search for a word.
    if not block.startswith(b"data: {") or block.count(b"\n") != 2:
        return False
    try:
        event = _notice(block[6:-2])
    except NOT_JSON:
        return False
    if event.usage is not None or event.timings is not None or event.type is not None or event.error is not NO_ERROR:
        return False
    choices = event.choices
    return not choices or (choices[0].finish_reason is None and (len(choices) == 1 or _unfinished(choices)))


def _unfinished(choices: list[NoticedChoice]) -> bool:
    return all(choice.finish_reason is None for choice in choices)


def _opens(data: bytes) -> bool:
    """Whether an event opens the answer and says nothing yet."""
    try:
        return says_nothing(_decode(data))
    except NOT_JSON:
        return False


def _error_in(body: EventBody | NoticedEvent, name: str) -> BackendBroken | None:
    choices = body.choices or ()
    told, stopped = body.error, False
    if told is NO_ERROR and not choices and body.type is None and not name:
        return None
    for choice in choices:
        stopped = stopped or choice.finish_reason == "error"
        if told == NO_ERROR:
            told = choice.error
    raw = bytes(told)
    if told == NO_ERROR or raw == _NULL:
        if name == "error" or body.type == "error":
            return BackendBroken(_words(body.message))
        if stopped:
            return BackendBroken("The backend stopped with an error.")
        return None
    try:
        error = _decode_error(raw)
    except NOT_JSON:
        error = None
    if not isinstance(error, ErrorBody):
        return BackendBroken(_words(error))
    code = error.code if isinstance(error.code, int) and 400 <= error.code <= 599 else None
    return BackendBroken(_words(error.message), backend_status=code)


def _words(message: object) -> str:
    if not isinstance(message, str) or not message.strip():
        return "The backend reported an error in the middle of its answer."
    return "The backend reported an error: " + "".join(c if c.isprintable() else " " for c in message[:500])


def _raising(chunks: list[Chunk], error: GatewayError) -> Iterator[Chunk]:
    yield from chunks
    raise error
