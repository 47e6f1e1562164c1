"""Parses a backend's response in Ollama's protocol, line by line or as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from hostler.adapters import lenient
from hostler.adapters.base import Parser
from hostler.adapters.canonical import Chunk, ResponseHead, TokenLogprob, ToolCall, Usage
from hostler.adapters.error_body import NO_ERROR, error_in_response, is_error
from hostler.adapters.errors import (
    AnswerTooLarge,
    BackendBroken,
    empty_response,
    incomplete_response,
    invalid_response,
    missing_vectors,
    truncated_response,
)
from hostler.adapters.held_chunks import HeldChunks
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.ollama.schema import WIRE, OllamaLogprob, OllamaResponse, OllamaToolCall
from hostler.adapters.tool_calls import CallPiece, ToolCallReader

MAX_LINE = 16 * 1024 * 1024
MAX_BODY = 64 * 1024 * 1024
_NO_ANSWERS = frozenset({"load", "unload"})

_decode = lenient.decoder(OllamaResponse)


class OllamaParser(Parser):
    """Parses one response to a request for `operation`: complete with `done`, or with the vectors of an embedding.

    Every chunk has decoded fields and bytes: a line, or the whole body. `streamed` is what was asked for; without it
    the response's label decides. A response in the other form is read all the same. `inputs` is how many vectors are
    due, if that is known. Lines without any content are signs of life, as gateways send them while a client waits.
    """

    def __init__(self, operation: str, *, streamed: bool | None = None, inputs: int = 0) -> None:
        self._operation = operation
        self._inputs = inputs
        self._streamed = streamed
        self.start(ResponseHead(media_type="application/x-ndjson"))

    def start(self, head: ResponseHead) -> None:
        self._head = head
        self._is_body = (
            head.media_type.lower().startswith("application/json") if self._streamed is None else not self._streamed
        )
        self._has_begun = False
        self._rest = bytearray()
        self._done = False
        self._calls = ToolCallReader()
        self._has_calls = False
        self._has_content = False
        self._held = HeldChunks()

    def take_signs(self) -> bytes:
        return self._held.take_signs()

    def feed(self, data: bytes) -> Iterator[Chunk]:
        seen = len(self._rest)
        self._rest += data
        if self._is_body:
            if len(self._rest) > MAX_BODY:
                raise AnswerTooLarge(MAX_BODY)
            return
        start = 0
        while (end := self._rest.find(b"\n", max(start, seen))) >= 0:
            line = bytes(self._rest[start : end + 1])
            if not self._has_begun and _is_start_of_body(line):
                self._is_body = True  # one object over several lines
                break
            start = end + 1
            yield from self._read(line)
        del self._rest[:start]
        if len(self._rest) > MAX_LINE:
            raise BackendBroken(f"The backend sent a line of more than {MAX_LINE} bytes.")

    def finish(self) -> Iterable[Chunk]:
        rest = bytes(self._rest)
        self._rest.clear()
        length = self._head.length
        if self._is_body and length is not None and len(rest) != length:
            raise truncated_response(len(rest), length)
        if self._is_body and not rest.strip():
            raise empty_response()
        if self._is_body and _has_lines(rest):
            self._is_body = False
            chunks = [chunk for line in rest.splitlines(keepends=True) for chunk in self._read(line)]
        else:
            chunks = list(self._read(rest))
        if not self._done:
            raise incomplete_response()
        return chunks

    def _read(self, line: bytes) -> Iterator[Chunk]:
        if not line.strip() or self._done:
            return
        self._has_begun = True
        try:
            body = _decode(line)
            calls = self._tool_calls(body)
        except NOT_JSON:
            raise invalid_response() from None
        if _is_error(body):
            raise error_in_response(line)
        vectors = body.embeddings if body.embeddings is not None else [body.embedding or []]
        embeds = self._operation in ("embed", "embeddings")
        if embeds and not any(vectors):
            raise invalid_response()
        if embeds and len(vectors) < self._inputs:
            raise missing_vectors(len(vectors), self._inputs)
        self._has_content = self._has_content or _has_content(body)
        if body.done and not embeds and not self._is_end(body):
            raise incomplete_response()
        self._done = bool(body.done) or embeds
        chunk = Chunk(
            wire=WIRE,
            raw=line,
            is_body=self._is_body,
            text=(body.message.content if body.message is not None else body.response) or "",
            reasoning=(body.message.thinking if body.message is not None else body.thinking) or "",
            tool_calls=calls,
            finish=self._finish(body) if body.done else None,
            usage=_usage(body) if self._done else None,
            logprobs=tuple(_logprob(entry) for entry in body.logprobs or ()),
            vectors=tuple(tuple(vector) for vector in vectors) if embeds else (),
        )
        if not (self._done or self._is_body or chunk.text or chunk.reasoning or calls or chunk.logprobs):
            self._held.add_sign(WIRE, line)
            return
        if self._held:
            yield from self._held.take()
        yield chunk

    def _tool_calls(self, body: OllamaResponse) -> tuple[ToolCall, ...]:
        pieces: list[OllamaToolCall] = (body.message.tool_calls if body.message is not None else body.tool_calls) or []
        self._has_calls = self._has_calls or bool(pieces)
        # Older servers give every call the index 0: the order counts.
        calls = [CallPiece(None, piece.id, piece.function.name, piece.function.arguments) for piece in pieces]
        return self._calls.read(calls, whole=True) + (self._calls.finish() if body.done else ())

    def _is_end(self, body: OllamaResponse) -> bool:
        """Whether a last line ends an answer. A model that is loaded or unloaded has not answered."""
        if body.done_reason:
            return body.done_reason not in _NO_ANSWERS
        return self._has_content or body.eval_count > 0

    def _finish(self, body: OllamaResponse) -> str:
        if body.done_reason == "length":
            return "length"
        return "tool_calls" if self._has_calls else "stop"


def _is_error(body: OllamaResponse) -> bool:
    """Whether a line reports an error. One with nothing but `error` does, even if that is empty."""
    return is_error(body.error) or (body.error is not NO_ERROR and body == OllamaResponse(error=body.error))


def _has_content(body: OllamaResponse) -> bool:
    message = body.message
    if message is not None and (message.content or message.thinking or message.tool_calls):
        return True
    return bool(body.response or body.thinking or body.tool_calls)


def _is_start_of_body(line: bytes) -> bool:
    """Whether a line is the beginning of an object that goes on in the next one."""
    try:
        msgspec.json.decode(line)
    except NOT_JSON:
        return line.lstrip().startswith(b"{") and not line.rstrip().endswith(b"}")
    return False


def _has_lines(body: bytes) -> bool:
    """Whether a body is a stream of lines rather than one object."""
    if b"}\n" not in body.rstrip():
        return False
    try:
        lenient.decode_any(body)
    except NOT_JSON:
        return True
    return False


def _usage(body: OllamaResponse) -> Usage:
    return Usage(
        prompt_tokens=body.prompt_eval_count,
        completion_tokens=body.eval_count,
        cached_tokens=min(body.prompt_eval_cached_count, body.prompt_eval_count),
        prompt_ms=body.prompt_eval_duration / 1e6 if body.prompt_eval_duration else None,
        completion_ms=body.eval_duration / 1e6 if body.eval_duration else None,
    )


def _logprob(body: OllamaLogprob) -> TokenLogprob:
    return TokenLogprob(
        token=body.token,
        logprob=body.logprob,
        bytes=None if body.bytes is None else tuple(body.bytes),
        top=tuple(_logprob(other) for other in body.top_logprobs or ()),
    )
