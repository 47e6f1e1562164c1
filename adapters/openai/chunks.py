"""OpenAI's responses decoded to canonical chunks: text, reasoning, tool calls, log probabilities, finish, usage."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from hostler.adapters import lenient
from hostler.adapters.canonical import Chunk, PromptStatus, TokenLogprob, Usage
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.schema import (
    WIRE,
    LlamaTimings,
    OpenAIChoice,
    OpenAIDelta,
    OpenAIEmbeddings,
    OpenAIEvent,
    OpenAILogprob,
    OpenAILogprobs,
    OpenAITokenCount,
    OpenAIUsage,
    OpenAIVector,
    PromptProgress,
    TokenDetails,
)
from hostler.adapters.tool_calls import CallPiece, ToolCallReader

_decode = lenient.decoder(OpenAIEvent)
_decode_embeddings = lenient.decoder(OpenAIEmbeddings)
_decode_vector = lenient.decoder(OpenAIVector)
_decode_usage = lenient.decoder(OpenAIUsage)
_decode_count = lenient.decoder(OpenAITokenCount)
_FINISH = {
    "function_call": "tool_calls",
    "tool_call": "tool_calls",
    "eos": "stop",
    "end_turn": "stop",
    "max_tokens": "length",
}
_OPENING_EVENTS = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    }
)

#: Bytes of a vector: more than any model has dimensions.
_MAX_VECTOR = 4 * 1024 * 1024

_NO_USAGE, _NO_TIMINGS, _NO_DETAILS = OpenAIUsage(), LlamaTimings(), TokenDetails()


def canonical_finish(reason: str) -> str:
    """The canonical name of a finish reason; an unknown one stays as it is."""
    return _FINISH.get(reason, reason)


def decode_usage(body: OpenAIUsage | None, timings: LlamaTimings | None) -> Usage | None:
    """Token counts from OpenAI's `usage`, llama.cpp's `timings` or both; `None` if there is neither."""
    if body is None and timings is None:
        return None
    body = body or _NO_USAGE
    prompt_details = body.prompt_tokens_details or body.input_tokens_details or _NO_DETAILS
    completion_details = body.completion_tokens_details or body.output_tokens_details or _NO_DETAILS
    if timings is None:
        if body.prompt_tokens is not None and prompt_details is completion_details:  # there are no details
            completion = _first_number(body.completion_tokens, body.output_tokens)
            return Usage(prompt_tokens=body.prompt_tokens, completion_tokens=completion, cost=body.cost)
        timings = _NO_TIMINGS
    prompt = _first_number(body.prompt_tokens, body.input_tokens, timings.prompt_n + timings.cache_n)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_first_number(body.completion_tokens, body.output_tokens, timings.predicted_n),
        cached_tokens=min(_first_number(prompt_details.cached_tokens, timings.cache_n), prompt),
        reasoning_tokens=_first_number(completion_details.reasoning_tokens, 0),
        prompt_ms=timings.prompt_ms,
        completion_ms=timings.predicted_ms,
        cost=body.cost,
    )


def decode_event(event: OpenAIEvent, calls: dict[int, ToolCallReader], *, single: bool = False) -> list[Chunk]:
    """One chunk for each choice in an event, and one for usage that comes without a choice.

    `calls` are the tool calls of the choices so far, by the choices' indexes. `single`: the only choice is the first one,
    whatever index it has.
    """
    usage = decode_usage(event.usage, event.timings)
    choices: Sequence[OpenAIChoice] = event.choices or ()
    if single and any(choice.index for choice in choices):
        choices = [msgspec.structs.replace(choice, index=0) for choice in choices]
    chunks = [_chunk(choice, choice.delta or choice.message, calls) for choice in choices]
    if chunks and event.verbose is not None:
        chunks[-1].stop = event.verbose.stopping_word or None
    if usage is not None:
        if chunks:
            chunks[-1].usage = usage
        else:
            chunks.append(Chunk(wire=WIRE, usage=usage))
    return chunks


def decode_response(body: bytes) -> list[Chunk]:
    """The chunks of a whole response; the first one carries the bytes. Raises `NOT_JSON` errors."""
    event = _decode(body)
    calls: dict[int, ToolCallReader] = {}
    chunks = [_chunk(choice, choice.message, calls, whole=True) for choice in event.choices or ()]
    chunks = chunks or [Chunk(wire=WIRE)]
    if len(chunks) == 1:
        chunks[0].index = 0
    chunks[-1].usage = decode_usage(event.usage, event.timings)
    chunks[0].raw = body
    for chunk in chunks:
        chunk.is_body = True
    return chunks


def decode_embeddings(body: bytes) -> Iterator[Chunk]:
    """The vectors of an embeddings response, in the order of the inputs, each in a chunk of its own, so that millions of
    numbers are not decoded in one go. Raises `NOT_JSON` errors and `ValueError`."""
    answer = _decode_embeddings(body)
    yield Chunk(wire=WIRE, raw=body, is_body=True, usage=_embeddings_usage(answer.usage))
    for entry in sorted(answer.data, key=lambda entry: lenient.count(entry.index) or 0):
        if memoryview(entry.embedding).nbytes > _MAX_VECTOR:
            raise ValueError("a vector of too many numbers")
        vector = tuple(decode_vector(_decode_vector(b'{"numbers":%b}' % entry.embedding).numbers))
        if not vector:
            raise ValueError("a vector without numbers")
        yield Chunk(wire=WIRE, is_body=True, vectors=(vector,))


def _embeddings_usage(raw: msgspec.Raw) -> Usage | None:
    try:
        return decode_usage(_decode_usage(raw), None)
    except NOT_JSON:
        return None


def decode_token_count(body: bytes) -> list[Chunk]:
    """The response of a token count. Raises `NOT_JSON` errors."""
    count = _decode_count(body).input_tokens
    return [Chunk(wire=WIRE, raw=body, is_body=True, usage=Usage(prompt_tokens=count))]


def decode_vector(embedding: list[float] | str) -> list[float]:
    """The numbers of a vector in either form."""
    if isinstance(embedding, str):
        numbers = array("f", base64.b64decode(embedding))
        return numbers.tolist()
    return embedding


def prompt_status(progress: PromptProgress) -> PromptStatus:
    """How far a prompt is read, from llama.cpp's own form."""
    return PromptStatus(
        total=progress.total,
        cached=progress.cache,
        processed=progress.processed,
        seconds=(progress.time_ms or 0.0) / 1000,
    )


def is_opening(event: OpenAIEvent) -> bool:
    """Whether an event only opens a response: its choices have no content, finish reason or usage, or it announces what
    the responses API sends next."""
    if event.type is not None:
        return event.type in _OPENING_EVENTS
    if not event.choices or event.usage is not None or event.timings is not None:
        return False
    return all(_is_empty_choice(choice) for choice in event.choices)


def _is_empty_choice(choice: OpenAIChoice) -> bool:
    delta = choice.delta
    if choice.finish_reason is not None or choice.text or choice.message is not None or choice.logprobs is not None:
        return False
    return delta is None or not (
        delta.content
        or delta.reasoning_content
        or delta.reasoning
        or delta.refusal
        or delta.tool_calls
        or delta.function_call is not None
    )


def content_text(content: Any) -> str:
    """The text of a `content` that is a string, a list of parts, or null."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _chunk(
    choice: OpenAIChoice, delta: OpenAIDelta | None, calls: dict[int, ToolCallReader], *, whole: bool = False
) -> Chunk:
    chunk = Chunk(wire=WIRE, index=choice.index, text=choice.text or "")
    if delta is not None:
        chunk.text = content_text(delta.content) or delta.refusal or ""
        chunk.reasoning = delta.reasoning_content or delta.reasoning or ""
        if delta.tool_calls or delta.function_call is not None:
            reader = calls.get(choice.index)
            if reader is None:
                reader = calls[choice.index] = ToolCallReader()
            chunk.tool_calls = reader.read(call_pieces(delta), whole=whole)
    if choice.finish_reason or whole:
        if choice.index in calls:
            chunk.tool_calls += calls[choice.index].finish()
        # A whole answer without a finish reason is finished all the same.
        unsaid = "tool_calls" if chunk.tool_calls else "stop"
        chunk.finish = canonical_finish(choice.finish_reason) if choice.finish_reason else unsaid
    # vLLM and SGLang put the stop sequence here, or the number of the token that ended the response.
    stop = choice.stop_reason or choice.matched_stop
    chunk.stop = stop if isinstance(stop, str) else None
    if choice.logprobs is not None:
        chunk.logprobs = _logprobs(choice.logprobs)
    return chunk


def call_pieces(delta: OpenAIDelta) -> list[CallPiece]:
    """The pieces of tool calls in a message, or in the next piece of one."""
    if delta.tool_calls:
        calls = delta.tool_calls if isinstance(delta.tool_calls, list) else [delta.tool_calls]
        # Some servers put the fields of the function beside its id.
        with_functions = [(call, call if call.function is None else call.function) for call in calls]
        return [CallPiece(call.index, call.id, inner.name, inner.arguments) for call, inner in with_functions]
    legacy = delta.function_call
    return [] if legacy is None else [CallPiece(0, None, legacy.name, legacy.arguments)]


def _logprobs(body: OpenAILogprobs) -> tuple[TokenLogprob, ...]:
    if body.content is not None:
        return tuple(_token(piece) for piece in body.content)
    pairs = zip(body.tokens or (), body.token_logprobs or (), strict=False)
    return tuple(TokenLogprob(token=token, logprob=0.0 if value is None else value) for token, value in pairs)


def _token(piece: OpenAILogprob) -> TokenLogprob:
    return TokenLogprob(
        token=piece.token,
        logprob=0.0 if piece.logprob is None else piece.logprob,
        bytes=None if piece.bytes is None else tuple(piece.bytes),
        top=tuple(_token(other) for other in piece.top_logprobs or ()),
    )


def _first_number(*numbers: int | None) -> int:
    for number in numbers:
        if number is not None:
            return number
    return 0
