"""Parses a backend's response in OpenAI's protocol: forwards the bytes and picks out finish, usage and errors."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hostler.adapters import lenient, sse
from hostler.adapters.base import Parser, is_media, raise_after
from hostler.adapters.canonical import Chunk, ResponseHead, Usage
from hostler.adapters.embedding_inputs import count_inputs
from hostler.adapters.error_body import NO_ERROR, error_in_response, flat_error, is_error
from hostler.adapters.errors import (
    AnswerTooLarge,
    BackendBroken,
    GatewayError,
    empty_response,
    incomplete_response,
    invalid_event,
    truncated_response,
)
from hostler.adapters.held_chunks import HeldChunks
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai import whole_response
from hostler.adapters.openai.call_events import CallEvents, has_calls
from hostler.adapters.openai.chunks import canonical_finish, decode_event, decode_usage, is_opening, prompt_status
from hostler.adapters.openai.schema import (
    FAILED_FINISHES,
    NO_CONTENT,
    RESPONSES,
    WIRE,
    EventSummary,
    NextEvent,
    OpenAIEvent,
    PromptProgress,
)
from hostler.adapters.openai.text_run import TextRun
from hostler.adapters.silence import says_nothing
from hostler.adapters.tool_calls import ToolCallReader

# A whole response is kept up to this size, in bytes, to find its usage; if its fields are decoded, up to the other one.
_MAX_KEPT = 256 * 1024
_MAX_DECODED = 64 * 1024 * 1024

_STREAM = ResponseHead(media_type=sse.MEDIA_TYPE)
_DONE = b"[DONE]"
# Operations whose streams are JSON throughout and end with a mark.
_WITH_END_MARK = frozenset({"chat", "completions", "responses"})
# Those in which the end mark alone is no end: it follows a finish reason.
_WITH_FINISH = frozenset({"chat", "completions"})
_ENDS = frozenset({b"}", b"]"})
_TAIL = 64
_VECTOR = b'"embedding":'
# What the responses API sends while there is nothing else to say.
_WAITING_EVENTS = frozenset({"response.queued", "response.in_progress"})
# So many chunks that only open the response are held back: a backend that fails right after them has not begun to
# answer, and another one may.
_MAX_HELD = 16
# Without the conversion of odd values: for the events of which nearly every response consists.
_decode_next = msgspec.json.Decoder(NextEvent).decode
#: Bytes of an event that may be the next token and nothing else.
_LONGEST_TOKEN = 256 * 1024
_decode_summary = lenient.decoder(EventSummary)
_decode = lenient.decoder(OpenAIEvent)


class OpenAIParser(Parser):
    """Parses one response to a request for `operation` with `choices` alternatives.

    Chat and completions are complete with `[DONE]` or the last `finish_reason`, responses with their closing event,
    everything else when the connection ends properly. With `fields`, each event is decoded too. `sent` is the body of a
    request for embeddings or a ranking, `wire` the one whose bytes are forwarded. `strips_progress`: the gateway has asked
    for the progress of reading the prompt, not the client.

    Until the first token, chunks that only open the response and signs of life are held back; then signs are, when they
    come alone. Chunks without anything new are signs, too.
    """

    def __init__(
        self,
        operation: str,
        *,
        fields: bool = False,
        wire: str | None = None,
        choices: int = 1,
        sent: bytes = b"",
        strips_progress: bool = False,
    ) -> None:
        self._operation = operation
        self._sent = sent
        # Chat and responses are different wires: the bytes of one cannot be forwarded as the other.
        self._wire = wire or (RESPONSES if operation == "responses" else WIRE)
        self._fields = fields
        self._choices = choices
        self._strips_progress = strips_progress or fields
        # Of several choices each is followed to its end.
        self._is_simple = choices == 1 and not fields
        self._is_chat = operation in _WITH_FINISH
        self._is_fast = False
        self._head: ResponseHead | None = None

    def start(self, head: ResponseHead) -> None:
        self._head = head
        self._size = 0
        self._vectors, self._edge = 0, b""
        self._pieces: list[bytes] = []
        self._tail = b""
        self._is_body = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self.holds_back = self._operation in whole_response.JSON_OPERATIONS or not is_media(head.media_type)
        self._is_fast = False
        self.prompt = None
        self.is_silent = False
        if self._is_body:
            return
        self._held = HeldChunks()
        self._splitter = sse.EventSplitter()
        self._finished: set[int] = set()
        self._choices_seen: set[int] = set()
        self._calls: dict[int, ToolCallReader] = {}
        self._call_events: CallEvents | None = None
        self._run = TextRun()
        self._done = False
        self._started = False
        self._prompt_usage: Usage | None = None
        self._completed = 0

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._head is None:
            self.start(_STREAM)
        if self._is_body:
            return self._feed_body(data)
        block = self._splitter.feed(data)
        if not block:
            return ()
        if self._is_fast and (_is_next_token(block) or self._run.texts(block)[1] == len(block)):
            return (Chunk(wire=self._wire, raw=block),)
        chunks = self._read(block)
        # From the first token to the end, unless something held back has to come before the next one.
        waits = self._done or self._held or self._holds_call or self.is_silent
        self._is_fast = self._is_simple and self._started and not waits
        return chunks

    def take_signs(self) -> bytes:
        return b"" if self._head is None or self._is_body else self._held.take_signs()

    def finish(self) -> Iterable[Chunk]:
        head = self._head
        if head is None:
            head = _STREAM
            self.start(head)
        if self._is_body:
            return self._finish_body(head)
        chunks: list[Chunk] = []
        rest = self._splitter.remainder()
        if rest and not self._done:
            # Some servers leave out the last blank line; an event that is cut off is an error.
            _, data = sse.parse(rest)
            if data != _DONE and not _is_json(data or b""):
                raise BackendBroken("The backend's response ended in the middle of an event.")
            chunks += self._read(rest.rstrip(b"\r\n") + b"\n\n")
        if not self._done:
            if self._operation not in _WITH_END_MARK:
                if self._operation in whole_response.WHOLE_OPERATIONS:
                    raise incomplete_response()
                return [*self._held.take(), *chunks]
            if not self._is_finished or len(self._finished) < self._choices:
                raise incomplete_response()
            self._done = True
            chunks.append(Chunk(wire=self._wire, raw=b"data: [DONE]\n\n"))
        return [*self._held.take(), *chunks]

    @property
    def _is_finished(self) -> bool:
        """Whether the end mark may follow: after the closing event, or every choice's finish reason."""
        if self._operation == "responses":
            return self._done
        if self._operation not in _WITH_FINISH:
            return True
        return bool(self._finished) and self._choices_seen <= self._finished

    @property
    def _holds_call(self) -> bool:
        """Whether an event with a tool call is held back."""
        return self._call_events is not None and self._call_events.holds

    def _read(self, block: bytes) -> Iterable[Chunk]:
        kept: list[bytes] = []
        finish: str | None = None
        usage: Usage | None = None
        chunks: list[Chunk] = []
        is_opening, are_signs = not self._started, True
        self.is_silent = True
        at = 0
        while at < len(block):
            are_next = self._is_simple and not (self._done or self._holds_call)
            if is_opening:
                # What streams the others may have is checked with their first event.
                are_next = are_next and self._is_chat
            elif are_next:
                texts, end = self._run.texts(block, at)
                if texts:
                    kept.append(block[at:end])
                    are_signs = self.is_silent = False
                    at = end
                    continue
            event = sse.first(block, at)
            at += len(event)
            if are_next and _is_next_token(event):
                kept.append(event)
                is_opening = are_signs = self.is_silent = False
                if at < len(block):
                    self._run.learn(event)
                continue
            name, data = sse.parse(event)
            if data is None:
                if not (self._fields and sse.is_comment(event)):
                    kept.append(event)
                continue
            if data == _DONE:
                if not self._is_finished or self._operation in whole_response.WHOLE_OPERATIONS:
                    return self._raise_after(kept, chunks, finish, usage, incomplete_response())
                self._done = True
                is_opening = are_signs = self.is_silent = False
                kept.append(event)
                continue
            if self._done:
                continue  # only comments may follow the end
            try:
                body = _decode(data) if self._fields else _decode_summary(data)
            except msgspec.ValidationError:
                error = flat_error(data)
                if error is not None:
                    return self._raise_after(kept, chunks, finish, usage, error)
                # JSON of another shape (llama.cpp sometimes sends a bare `null`): forwarded as it is.
                kept.append(event)
                is_opening = are_signs = self.is_silent = False
                continue
            except NOT_JSON:
                if self._operation not in whole_response.JSON_OPERATIONS:
                    kept.append(event)
                    are_signs = self.is_silent = False
                    continue
                return self._raise_after(kept, chunks, finish, usage, invalid_event())
            error = _error_in(body, name, data)
            if error is not None and not (self._started and body.type == "response.failed"):
                return self._raise_after(kept, chunks, finish, usage, error)
            is_other = self._operation == "responses" and body.choices is not None
            if is_other or self._operation in whole_response.WHOLE_OPERATIONS:
                # A chat instead: the server has another API at this path. Or a stream of what is never one.
                return self._raise_after(kept, chunks, finish, usage, invalid_event())
            if body.prompt_progress is not None:
                self._notice_progress(body.prompt_progress)
                if not self._strips_progress:
                    kept.append(event)
                continue
            if not self._started and body.x_hostler is not NO_CONTENT:
                # Another gateway shows what it waits for.
                if not self._fields:
                    kept.append(event)
                continue
            if forwarded := event if self._fields else self._forward(event, data):
                kept.append(forwarded)
            are_signs = False
            is_silent = self._is_silent_event(body, data)
            self.is_silent = self.is_silent and is_silent
            is_opening = is_opening and (is_silent or _is_opening_event(data))
            for choice in body.choices or ():
                index = choice.index if self._choices > 1 else 0
                if choice.finish_reason:
                    self._finished.add(index)
                    finish = canonical_finish(choice.finish_reason)
                self._choices_seen.add(index)
            if body.type in ("response.completed", "response.incomplete", "response.failed"):
                self._done = True
                finish = "stop" if body.type == "response.completed" else "length"
                if body.response is not None:
                    usage = decode_usage(body.response.usage, body.timings) or usage
            usage = decode_usage(body.usage, body.timings) or usage
            if self._fields and isinstance(body, OpenAIEvent):
                chunks += decode_event(body, self._calls, single=self._choices == 1)
        if not kept:
            return []
        if are_signs:
            self._held.add_sign(self._wire, b"".join(kept))
            return []
        completed = self._complete(kept, chunks, finish, usage)
        if is_opening and self._held.openings < _MAX_HELD:
            self._held.add(completed)
            return []
        if is_opening and self.is_silent:
            return []  # one more of those that are held
        self._started = True
        return self._held.take() + completed

    def _is_silent_event(self, body: OpenAIEvent | EventSummary, data: bytes) -> bool:
        """Whether an event only keeps the connection alive. Where each one reports the usage, that grows with every token."""
        if body.usage is not None:
            before, self._completed = self._completed, body.usage.completion_tokens or 0
            if self._completed != before:
                return False
        if body.timings is not None:
            return False
        if any(choice.finish_reason is not None for choice in body.choices or ()):
            return False
        if body.type is not None and body.type.startswith("response.") and not body.type.endswith(".delta"):
            return body.type in _WAITING_EVENTS
        return says_nothing(data)

    def _notice_progress(self, progress: PromptProgress) -> None:
        self.prompt = prompt_status(progress)
        if self._fields:
            # Passed on with the first token.
            self._prompt_usage = Usage(prompt_tokens=progress.total, cached_tokens=progress.cache)

    def _complete(self, kept: list[bytes], chunks: list[Chunk], finish: str | None, usage: Usage | None) -> list[Chunk]:
        """The chunks of a block: the first one carries the bytes, so that the response can be forwarded, too."""
        if not kept:
            return []
        if self._fields:
            chunks = chunks or [Chunk(wire=self._wire)]
            if finish is not None and all(chunk.finish is None for chunk in chunks):
                chunks[-1].finish = finish
            if usage is not None and all(chunk.usage is None for chunk in chunks):
                chunks[-1].usage = usage
        else:
            chunks = [Chunk(wire=self._wire, finish=finish, usage=usage)]
        if self._prompt_usage is not None and chunks[0].usage is None:
            chunks[0].usage, self._prompt_usage = self._prompt_usage, None
        chunks[0].raw = b"".join(kept)
        return chunks

    def _forward(self, event: bytes, data: bytes) -> bytes:
        """The event for clients of this protocol."""
        if self._call_events is None:
            if self._operation != "chat" or not has_calls(event):
                return event
            self._call_events = CallEvents()
        return self._call_events.forward(event, data)

    def _raise_after(
        self, kept: list[bytes], chunks: list[Chunk], finish: str | None, usage: Usage | None, error: GatewayError
    ) -> Iterable[Chunk]:
        if not self._started:
            # Nothing was passed on yet, so another backend may still answer.
            raise error
        return raise_after(self._complete(kept, chunks, finish, usage), error)

    def _feed_body(self, data: bytes) -> Iterable[Chunk]:
        if not self._size and self._head is not None:
            whole_response.check_start(self._operation, self._head.media_type, data)
        self._size += len(data)
        if self._size > _MAX_KEPT:
            self._tail = data[-_TAIL:].strip()[-1:] or self._tail
        limit = _MAX_DECODED if self._fields else _MAX_KEPT
        if self._size <= limit:
            self._pieces.append(data)
        elif self._fields:
            raise AnswerTooLarge(limit)
        else:
            if self._operation == "embeddings":
                self._count_vectors(b"".join((*self._pieces, data)))
            self._pieces.clear()
        return () if self._fields else (Chunk(wire=self._wire, raw=data, is_body=True),)

    def _count_vectors(self, data: bytes) -> None:
        """Count those of a response that is not kept, as those with several vectors seldom are."""
        window = self._edge + data
        self._vectors += window.count(_VECTOR)
        self._edge = window[1 - len(_VECTOR) :]

    def _finish_body(self, head: ResponseHead) -> Iterable[Chunk]:
        length = head.length
        if length is not None and self._size != length:
            raise truncated_response(self._size, length)
        operation = self._operation
        raw = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if operation not in whole_response.JSON_OPERATIONS:
            error = whole_response.reported(raw) if head.media_type.lower().startswith("application/json") else None
            if error is not None:
                raise error
            if operation == "speech" and not self._size:
                raise empty_response()
            return (Chunk(wire=self._wire, raw=raw, is_body=True),) if self._fields else ()
        if self._fields:
            return whole_response.decode(operation, raw, self._sent)
        if self._size > _MAX_KEPT:
            if self._tail not in _ENDS:
                raise incomplete_response()
            if self._vectors:
                whole_response.check_vectors(self._vectors, count_inputs(self._sent))
            return ()
        finish, usage = whole_response.check(operation, raw, self._sent)
        if finish is None and usage is None:
            return ()
        return (Chunk(wire=self._wire, is_body=True, finish=finish, usage=usage),)


def _is_json(data: bytes) -> bool:
    try:
        _decode_summary(data)
    except msgspec.ValidationError:
        return True
    except NOT_JSON:
        return False
    return True


def _is_next_token(block: bytes) -> bool:
    # Nearly every event is the next token and nothing else. Decoding the few fields that could say otherwise takes a
    # third of a microsecond, less than one search for a word.
    if not block.startswith(b"data: {") or len(block) > _LONGEST_TOKEN or block.find(b"\n") != len(block) - 2:
        return False
    try:
        event = _decode_next(block[6:-2])
    except NOT_JSON:
        return False
    if event.usage is not None or event.timings is not None or event.type is not None or event.error is not NO_ERROR:
        return False
    if event.prompt_progress is not NO_CONTENT or event.x_hostler is not NO_CONTENT:
        return False
    for choice in event.choices or ():  # in a loop: a call for each choice would take a frame for each token
        delta = choice.delta
        if choice.finish_reason is not None or choice.error is not NO_ERROR:
            return False
        if delta is None:
            if not choice.text:
                return False
        elif delta.tool_calls or not (delta.content or delta.reasoning_content or delta.reasoning):
            return False
    return bool(event.choices)


def _is_opening_event(data: bytes) -> bool:
    try:
        return is_opening(_decode(data))
    except NOT_JSON:
        return False


def _error_in(body: OpenAIEvent | EventSummary, name: str, data: bytes) -> BackendBroken | None:
    """The error that an event reports, in any of the places where servers put it."""
    if is_error(body.error):
        return error_in_response(data)
    stopped = False
    for choice in body.choices or ():
        if is_error(choice.error):
            return error_in_response(msgspec.json.encode({"error": choice.error}))
        stopped = stopped or choice.finish_reason in FAILED_FINISHES
    if stopped:
        return BackendBroken("The backend stopped with an error.")
    if name == "error" or body.type == "error":
        return error_in_response(data)
    if body.choices or b'"error' not in data:
        return None
    if body.type is None or not body.type.startswith("response."):
        return flat_error(data)
    failure = body.response.error if body.type == "response.failed" and body.response is not None else NO_ERROR
    return error_in_response(msgspec.json.encode({"error": failure})) if is_error(failure) else None
