"""Answers as llama-server's clients read them: the engine's own bytes, or a stream of them folded into the whole."""

from __future__ import annotations

import msgspec

from hostler.adapters import framing
from hostler.adapters.canonical import AnswerHead, Chunk, Control, Passthrough, Progress, Request
from hostler.adapters.errors import GatewayError
from hostler.adapters.llamacpp.fold import CompletionFold
from hostler.adapters.llamacpp.refusal import error_event
from hostler.adapters.llamacpp.wire import EVENT_STREAM, JSON
from hostler.adapters.progress import PREFIX, progress_line


class LlamaCppEncoder:
    """One answer to one client."""

    __slots__ = (
        "_control",
        "_fold",
        "_folds",
        "_length",
        "_media_type",
        "_progress",
        "_streaming",
        "_tokens",
        "_whole",
    )

    def __init__(self, request: Request, *, tokens: bool, progress: str) -> None:
        self._streaming = isinstance(request, Passthrough) and request.output.stream
        self._control = isinstance(request, Control)
        self._tokens = tokens
        self._progress = progress
        self.begin(AnswerHead(media_type=JSON))

    @property
    def streaming(self) -> bool:
        """Whether the client asked for an event stream."""
        return self._streaming

    @property
    def media_type(self) -> str:
        """The media type of the answer."""
        return self._media_type

    @property
    def length(self) -> int | None:
        """The length of the whole body, if it is known by now."""
        return self._length

    def begin(self, head: AnswerHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        self._fold = CompletionFold(tokens=self._tokens)
        self._whole = bytearray()
        self._length: int | None = None
        events = head.media_type.lower().startswith(EVENT_STREAM)
        self._folds = events and not self._streaming
        if self._streaming:
            self._media_type = EVENT_STREAM
        else:
            self._media_type = JSON if events else head.media_type or "application/octet-stream"
            self._length = None if events else head.length

    def chunk(self, chunk: Chunk) -> bytes:
        """The bytes for the client that this chunk gives; empty while a whole answer is still being folded."""
        if self._streaming and chunk.whole:
            self._whole += chunk.raw
            return b""
        if self._folds:
            self._fold.add_events(chunk.raw)
            return b""
        return chunk.raw

    def end(self) -> bytes:
        """What ends the answer: the folded whole; nothing after a stream, which has told its end itself."""
        if self._control:
            return b'{"success":true}'
        if self._streaming:
            return _told(bytes(self._whole))
        if not self._folds:
            return b""
        body = self._fold.result()
        self._length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """A sign of life: a comment, as llama-server sends them itself."""
        if not self._streaming or self._progress == "off":
            return b""
        return framing.comment(PREFIX + progress_line(progress)) + b"\n"

    def error(self, error: GatewayError) -> bytes:
        """The error inside the stream. There is nothing else that ends one."""
        return error_event(error) if self._streaming else b""


def _told(body: bytes) -> bytes:
    """A whole answer told as a stream, for an engine that does not stream though it was asked to."""
    try:
        return framing.write(msgspec.json.format(body, indent=-1)) if body else b""
    except msgspec.DecodeError:
        return b""
