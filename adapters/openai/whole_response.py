"""Whole responses in OpenAI's protocol: whether one is a response at all, and its content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from hostler.adapters import lenient
from hostler.adapters.canonical import Chunk, Usage
from hostler.adapters.embedding_inputs import count_inputs
from hostler.adapters.error_body import error_in_response, is_error
from hostler.adapters.errors import BackendBroken, empty_response, invalid_response, missing_vectors
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
    RankedDocument,
    ResponseSummary,
    WholeChoice,
)

#: Operations whose whole responses are one JSON object; the others may return anything.
JSON_OPERATIONS = frozenset(
    {
        *("chat", "completions", "embeddings", "rerank", "responses", "count"),
        *("moderations", "images", "image_edits", "image_variations"),
    }
)
#: Those of them whose responses are never streams.
WHOLE_OPERATIONS = frozenset({"embeddings", "rerank", "count", "moderations"})

_LONG = 64
#: Embeddings from this size on, in bytes, are read once only: an error is never so long.
_LARGE = 256 * 1024
_BRACKET = ord("[")
_PAGE = "text/html"
_CHOICES = frozenset({"chat", "completions"})
_UNFINISHED = frozenset({"failed", "cancelled", "incomplete"})
_RUNNING = frozenset({"queued", "in_progress"})
_NOTHING = frozenset({b"", NULL})
_EMPTY_TEXTS = _NOTHING | {b'""'}
_EMPTY_VECTOR = re.compile(rb'"embeddings?"\s*:\s*(?:null|\[\s*(?:\]|null)|"")')
#: Numbers, lists of them (of each token, under either name), text in base64, or sparse numbers.
_VECTOR = re.compile(rb'"embeddings?"\s*:\s*(?:\[\s*[-\d\[]|"[^"]|\{\s*")')
_SHORT = 1024
_NO_MEMBERS = ResponseSummary()
_decode_message = lenient.decoder(OpenAIDelta)
_decode_summary = lenient.decoder(ResponseSummary)
_decode_scores = lenient.decoder(list[RankedDocument])


def check(operation: str, raw: bytes, sent: bytes = b"") -> tuple[str | None, Usage | None]:
    """The finish reason and the usage of a response to an embeddings request with the body `sent`, or to another one.

    Raises `BackendBroken` for an error, and for what is no response.
    """
    body = _summary(operation, raw, sent)
    if operation == "embeddings" and sent:
        check_vectors(len(_VECTOR.findall(raw)), count_inputs(sent))
    if body is None:
        return None, None
    finish = next((choice.finish_reason for choice in body.choices or () if choice.finish_reason), None)
    return canonical_finish(finish) if finish else None, decode_usage(body.usage, body.timings)


def decode(operation: str, raw: bytes, sent: bytes = b"") -> Iterable[Chunk]:
    """The chunks of a response to a request with the body `sent`, the first with the bytes.

    Raises `BackendBroken` for an error, and for what is none. The vectors of embeddings are decoded one by one as they
    are taken, and may raise it then.
    """
    if operation == "embeddings":
        if len(raw) <= _LARGE:
            _summary(operation, raw)
        return _decode_vectors(raw, count_inputs(sent))
    _summary(operation, raw)
    try:
        return decode_token_count(raw) if operation == "count" else decode_response(raw)
    except (*NOT_JSON, ValueError):
        raise invalid_response() from None


def _decode_vectors(raw: bytes, inputs: int) -> Iterator[Chunk]:
    vectors = 0
    try:
        for chunk in decode_embeddings(raw):
            vectors += len(chunk.vectors)
            yield chunk
    except (*NOT_JSON, ValueError):
        _summary("embeddings", raw)  # it may be an error
        raise invalid_response() from None
    check_vectors(vectors, inputs)


def check_vectors(vectors: int, inputs: int) -> None:
    """Raise `BackendBroken` if a response has vectors, but fewer than its request has inputs."""
    if 0 < vectors < inputs:
        raise missing_vectors(vectors, inputs)


def check_start(operation: str, media_type: str, start: bytes) -> None:
    """Raise `BackendBroken` if the first bytes cannot be those of a response: a login page, for example."""
    if operation not in JSON_OPERATIONS:
        if media_type.lower().startswith(_PAGE) and start.lstrip().startswith(b"<"):
            raise invalid_response()
        return
    if start.startswith((b"{", b"[")):
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
        if operation == "rerank" and raw.lstrip()[:1] == b"[" and _are_scores(raw):
            return None
        raise (error_in_response(raw) if raw.lstrip()[:1] == b"[" else invalid_response()) from None
    except NOT_JSON:
        raise invalid_response() from None
    error = _error(body, raw)
    if error is not None:
        raise error
    # In this order: the request, which may be long, is decoded only if the response is empty.
    if _has_content(operation, body) or _is_of_another_form(operation, body, raw):
        return body
    if (_is_list(body.data) or _is_list(body.results)) and _is_without_input(sent):
        return body
    raise invalid_response()


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
        return _has_entries(body.data) and _has_vector(body.data)
    if operation == "responses":
        if body.status in _RUNNING:
            return body.background is True  # else it has been cut off
        return _is_list(body.output) or body.status in _UNFINISHED
    if operation == "count":
        return body.input_tokens is not None
    if operation == "rerank":
        return _are_scores(bytes(body.results)) or _are_scores(bytes(body.data))
    if operation == "moderations" and _is_list(body.results):
        return True
    return _has_entries(body.results) or _has_entries(body.data) or _has_entries(body.images)


def _is_of_another_form(operation: str, body: ResponseSummary, raw: bytes) -> bool:
    """Whether a moderation has none of OpenAI's members, but others: servers have forms of their own for it."""
    return operation == "moderations" and body == _NO_MEMBERS and lenient.decode_any(raw) != {}


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


def _has_vector(raw: msgspec.Raw) -> bool:
    """Whether there is a vector, and no empty one."""
    data = bytes(raw)
    if _VECTOR.search(data) is None:
        return False
    # Numbers have no letter of "null": one search for a letter passes over nearly every response.
    return not (b"u" in data or len(data) < _SHORT) or _EMPTY_VECTOR.search(data) is None


def _are_scores(raw: bytes) -> bool:
    """Whether this is a list of the scores of documents, in any server's form, and not an empty one."""
    try:
        scores = _decode_scores(raw)
    except NOT_JSON:
        return False
    return bool(scores) and all(map(_is_score, scores))


def _is_score(each: RankedDocument) -> bool:
    return each.relevance_score is not None or each.score is not None


def _is_without_input(sent: bytes) -> bool:
    """Whether a request has no text to embed or no document to rank, or wants none ranked, so that its response is empty."""
    try:
        body = msgspec.json.decode(sent, type=dict[str, Any])
    except NOT_JSON:
        return False
    if "documents" in body:
        return not body["documents"] or body.get("top_n") == 0
    return not body.get("input")


def _has_entries(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)  # vectors are long: nothing of them is copied
    if view.nbytes > _LONG:
        return view[0] == _BRACKET
    return view.nbytes > 0 and view[0] == _BRACKET and bytes(raw)[1:].strip() != b"]"


def _is_list(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)
    return view.nbytes > 0 and view[0] == _BRACKET
