"""Parses a backend's response in Ollama's protocol, line by line or as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from hostler.adapters.base import Parser
from hostler.adapters.canonical import Chunk, ResponseHead, TokenLogprob, ToolCall, Usage
from hostler.adapters.errors import (
    BackendBroken,
    incomplete_response,
    invalid_response,
    oversized_response,
    reported_error,
    truncated_response,
)
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.ollama.schema import WIRE, OllamaLogprob, OllamaResponse, OllamaToolCall

MAX_LINE = 16 * 1024 * 1024
MAX_BODY = 64 * 1024 * 1024

_decode = msgspec.json.Decoder(OllamaResponse).decode


class OllamaParser(Parser):
    """Parses one response to a request for `operation`: complete with `done`, or with the vectors of an embedding.

    Every chunk has decoded fields and bytes: a line, or the whole body.
    """

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self.start(ResponseHead(media_type="application/x-ndjson"))

    def start(self, head: ResponseHead) -> None:
        self._head = head
        self._is_body = head.media_type.lower().startswith("application/json")
        self._rest = bytearray()
        self._done = False
        self._call_count = 0

    def feed(self, data: bytes) -> Iterator[Chunk]:
        seen = len(self._rest)
        self._rest += data
        if self._is_body:
            if len(self._rest) > MAX_BODY:
                raise oversized_response(MAX_BODY)
            return
        start = 0
        while (end := self._rest.find(b"\n", max(start, seen))) >= 0:
            line = bytes(self._rest[start : end + 1])
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
        chunks = list(self._read(rest))
        if not self._done:
            raise incomplete_response()
        return chunks

    def _read(self, line: bytes) -> Iterator[Chunk]:
        if not line.strip() or self._done:
            return
        try:
            body = _decode(line)
            calls = self._tool_calls(body)
        except NOT_JSON:
            raise invalid_response() from None
        if body.error is not msgspec.UNSET:
            raise reported_error(body.error)
        vectors = body.embeddings if body.embeddings is not None else [body.embedding or []]
        embeds = self._operation in ("embed", "embeddings")
        self._done = bool(body.done) or (embeds and (body.embeddings is not None or body.embedding is not None))
        yield Chunk(
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

    def _tool_calls(self, body: OllamaResponse) -> tuple[ToolCall, ...]:
        pieces: list[OllamaToolCall] = (body.message.tool_calls if body.message is not None else body.tool_calls) or []
        calls = []
        for piece in pieces:
            # Older servers give every call the index 0: the order counts.
            arguments = bytes(piece.function.arguments).decode()
            calls.append(
                ToolCall(index=self._call_count, id=piece.id or None, name=piece.function.name, arguments=arguments)
            )
            self._call_count += 1
        return tuple(calls)

    def _finish(self, body: OllamaResponse) -> str:
        if body.done_reason == "length":
            return "length"
        return "tool_calls" if self._call_count else "stop"


def _usage(body: OllamaResponse) -> Usage:
    return Usage(
        prompt_tokens=body.prompt_eval_count,
        completion_tokens=body.eval_count,
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
