"""Whole responses in OpenAI's protocol: whether one is a response at all, and its content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from hostler.adapters import lenient
from hostler.adapters.canonical import Chunk, Usage
from hostler.adapters.error_body import error_in_response, is_error
from hostler.adapters.errors import BackendBroken, empty_response, invalid_response
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.chunks import (
    canonical_finish,
    decode_embeddings,
    decode_response,
    decode_token_count,
    decode_usage,
)
from hostler.adapters.openai.schema import (
    FAILED_FINISHES,
    NULL,
    OpenAIDelta,
    ResponseSummary,
    WholeChoice,
)

#: Operations whose whole responses are one JSON object; the others may return anything.
JSON_OPERATIONS = frozenset({"chat", "completions", "embeddings", "rerank", "responses", "count"})

_LONG = 64
#: Embeddings from this size on, in bytes, are read once only: an error is never so long.
_LARGE = 256 * 1024
_BRACKET = ord("[")
_CHOICES = frozenset({"chat", "completions"})
_UNFINISHED = frozenset({"failed", "cancelled", "incomplete"})
_RUNNING = frozenset({"queued", "in_progress"})
_NOTHING = frozenset({b"", NULL})
_EMPTY_TEXTS = _NOTHING | {b'""'}
_EMPTY_VECTOR = re.compile(rb'"embedding"\s*:\s*(?:null|\[\s*\]|"")')
_SHORT = 1024
_decode_message = lenient.decoder(OpenAIDelta)
_decode_summary = lenient.decoder(ResponseSummary)


def check(operation: str, raw: bytes, sent: bytes = b"") -> tuple[str | None, Usage | None]:
    """The finish reason and the usage of a response to an embeddings request with the body `sent`, or to another one.

    Raises `BackendBroken` for an error, and for what is no response.
    """
    body = _summary(operation, raw, sent)
    if body is None:
        return None, None
    finish = next((choice.finish_reason for choice in body.choices or () if choice.finish_reason), None)
    return canonical_finish(finish) if finish else None, decode_usage(body.usage, body.timings)


def decode(operation: str, raw: bytes) -> Iterable[Chunk]:
    """The chunks of a response, the first with the bytes. Raises `BackendBroken` for an error, and for what is none.

    The vectors of embeddings are decoded one by one as they are taken, and may raise it then.
    """
    if operation == "embeddings":
        if len(raw) <= _LARGE:
            _summary(operation, raw)
        return _decode_vectors(raw)
    _summary(operation, raw)
    try:
        return decode_token_count(raw) if operation == "count" else decode_response(raw)
    except (*NOT_JSON, ValueError):
        raise invalid_response() from None


def _decode_vectors(raw: bytes) -> Iterator[Chunk]:
    try:
        yield from decode_embeddings(raw)
    except (*NOT_JSON, ValueError):
        _summary("embeddings", raw)  # it may be an error
        raise invalid_response() from None


def check_start(operation: str, start: bytes) -> None:
    """Raise `BackendBroken` if a response cannot be JSON by its first bytes: a login page, for example."""
    if start.startswith((b"{", b"[")) or operation not in JSON_OPERATIONS:
        return
    if start.strip() and not start.lstrip().startswith((b"{", b"[")):
        raise invalid_response()


def reported(raw: bytes) -> BackendBroken | None:
    """The error in a response, which may be of any kind; `None` if there is none."""
    try:
        body = _decode_summary(raw)
    except NOT_JSON:
        return None
    return _error(body, raw)


def _summary(operation: str, raw: bytes, sent: bytes = b"") -> ResponseSummary | None:
    """What shows that the bytes are a response; `None` for a list, which only rerankers return."""
    if not raw.strip():
        raise empty_response()
    try:
        body = _decode_summary(raw)
    except msgspec.ValidationError:
        if operation == "rerank" and raw.lstrip()[:1] == b"[":
            return None
        raise (error_in_response(raw) if raw.lstrip()[:1] == b"[" else invalid_response()) from None
    except NOT_JSON:
        raise invalid_response() from None
    error = _error(body, raw)
    if error is not None:
        raise error
    if not _has_content(operation, body) and not (_is_list(body.data) and _is_without_input(sent)):
        raise invalid_response()
    return body


def _error(body: ResponseSummary, raw: bytes) -> BackendBroken | None:
    if is_error(body.error) or body.object == "error":
        return error_in_response(raw)
    for choice in body.choices or ():
        if is_error(choice.error):
            return error_in_response(msgspec.json.encode({"error": choice.error}))
        if choice.finish_reason in FAILED_FINISHES:
            return BackendBroken("The backend stopped with an error.")
    return None


def _has_content(operation: str, body: ResponseSummary) -> bool:
    if operation in _CHOICES:
        return bool(body.choices) and all(map(_is_answer, body.choices or ()))
    if operation == "embeddings":
        return _has_entries(body.data) and not _has_empty_vector(body.data)
    if operation == "responses":
        if body.status in _RUNNING:
            return body.background is True  # else it has been cut off
        return _is_list(body.output) or body.status in _UNFINISHED
    if operation == "count":
        return body.input_tokens is not None
    return _is_list(body.results) or _has_entries(body.data)


def _is_answer(choice: WholeChoice) -> bool:
    """Whether a choice has an answer: an empty one only if it says that it is finished."""
    if choice.finish_reason:
        return not {bytes(choice.message), bytes(choice.text)} <= _NOTHING
    try:
        message = _decode_message(choice.message) if bytes(choice.message) not in _NOTHING else None
    except NOT_JSON:
        return False
    if message is None:
        return bytes(choice.text) not in _EMPTY_TEXTS
    return bool(message.content or message.reasoning_content or message.reasoning or message.refusal) or bool(
        message.tool_calls or message.function_call
    )


def _has_empty_vector(raw: msgspec.Raw) -> bool:
    data = bytes(raw)
    # Numbers have no letter of "null": one search for a letter passes over nearly every response.
    return (b"u" in data or len(data) < _SHORT) and _EMPTY_VECTOR.search(data) is not None


def _is_without_input(sent: bytes) -> bool:
    """Whether an embeddings request has no text, so that its response has no vectors."""
    try:
        return bool(sent) and not msgspec.json.decode(sent, type=dict[str, Any]).get("input")
    except NOT_JSON:
        return False


def _has_entries(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)  # vectors are long: nothing of them is copied
    if view.nbytes > _LONG:
        return view[0] == _BRACKET
    return view.nbytes > 0 and view[0] == _BRACKET and bytes(raw)[1:].strip() != b"]"


def _is_list(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)
    return view.nbytes > 0 and view[0] == _BRACKET
