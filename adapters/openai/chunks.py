"""OpenAI's answers as canonical chunks: text, reasoning, tool calls, log probabilities, finish reasons, counts."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import msgspec

from hostler.adapters.openai.schema import (
    WIRE,
    ChoiceBody,
    CountBody,
    DeltaBody,
    EmbeddingsBody,
    EventBody,
    FunctionPiece,
    LogprobPiece,
    LogprobsBody,
    Timings,
    TokenDetails,
    UsageBody,
)
from hostler.adapters.types import Chunk, TokenLogprob, ToolCall, Usage

_decode = msgspec.json.Decoder(EventBody).decode
_decode_embeddings = msgspec.json.Decoder(EmbeddingsBody).decode
_decode_count = msgspec.json.Decoder(CountBody).decode
_FINISH = {"function_call": "tool_calls", "eos": "stop", "end_turn": "stop", "max_tokens": "length"}


_NO_USAGE, _NO_TIMINGS, _NO_DETAILS = UsageBody(), Timings(), TokenDetails()


def plain_finish(reason: str) -> str:
    """The finish reason in canonical words; an unknown one stays as it is."""
    return _FINISH.get(reason, reason)


def usage_of(body: UsageBody | None, timings: Timings | None) -> Usage | None:
    """The counts of an answer, from OpenAI's `usage`, llama.cpp's `timings` or both; `None` if there is neither."""
    if body is None and timings is None:
        return None
    body = body or _NO_USAGE
    into = body.prompt_tokens_details or body.input_tokens_details or _NO_DETAILS
    out = body.completion_tokens_details or body.output_tokens_details or _NO_DETAILS
    if timings is None:
        if body.prompt_tokens is not None and into is out:  # nothing else is told
            completion = _first(body.completion_tokens, body.output_tokens)
            return Usage(prompt_tokens=body.prompt_tokens, completion_tokens=completion, cost=body.cost)
        timings = _NO_TIMINGS
    prompt = _first(body.prompt_tokens, body.input_tokens, timings.prompt_n + timings.cache_n)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_first(body.completion_tokens, body.output_tokens, timings.predicted_n),
        cached_tokens=min(_first(into.cached_tokens, timings.cache_n), prompt),
        reasoning_tokens=_first(out.reasoning_tokens, 0),
        prompt_ms=timings.prompt_ms,
        completion_ms=timings.predicted_ms,
        cost=body.cost,
    )


def chunks_of_event(event: EventBody) -> list[Chunk]:
    """One chunk for each choice in an event, and one for counts that come without a choice."""
    usage = usage_of(event.usage, event.timings)
    chunks = [_chunk(choice, choice.delta) for choice in event.choices or ()]
    if chunks and event.verbose is not None:
        chunks[-1].stop = event.verbose.stopping_word or None
    if usage is not None:
        if chunks:
            chunks[-1].usage = usage
        else:
            chunks.append(Chunk(wire=WIRE, usage=usage))
    return chunks


def chunks_of_whole(body: bytes) -> list[Chunk]:
    """A whole answer as chunks. The bytes ride on the first one. Raises msgspec's errors for what is no answer."""
    event = _decode(body)
    chunks = [_chunk(choice, choice.message) for choice in event.choices or ()] or [Chunk(wire=WIRE)]
    chunks[-1].usage = usage_of(event.usage, event.timings)
    chunks[0].raw = body
    for chunk in chunks:
        chunk.is_body = True
    return chunks


def chunks_of_embeddings(body: bytes) -> list[Chunk]:
    """The vectors of an embeddings answer, in the order of the inputs. Raises msgspec's errors for what is no answer."""
    answer = _decode_embeddings(body)
    vectors = tuple(tuple(numbers_of(entry.embedding)) for entry in sorted(answer.data, key=lambda entry: entry.index))
    return [Chunk(wire=WIRE, raw=body, is_body=True, vectors=vectors, usage=usage_of(answer.usage, None))]


def chunks_of_count(body: bytes) -> list[Chunk]:
    """The number of tokens that a conversation takes. Raises msgspec's errors for what is no answer."""
    counted = _decode_count(body).input_tokens
    return [Chunk(wire=WIRE, raw=body, is_body=True, usage=Usage(prompt_tokens=counted))]


def numbers_of(embedding: list[float] | str) -> list[float]:
    """A vector's numbers, from either form."""
    if isinstance(embedding, str):
        numbers = array("f", base64.b64decode(embedding))
        return numbers.tolist()
    return embedding


def says_nothing(event: EventBody) -> bool:
    """Whether an event only opens an answer: choices without a word, an end or a count."""
    if not event.choices or event.usage is not None or event.timings is not None or event.type is not None:
        return False
    return all(_is_empty(choice) for choice in event.choices)


def _is_empty(choice: ChoiceBody) -> bool:
    said = choice.delta
    if choice.finish_reason is not None or choice.text or choice.message is not None or choice.logprobs is not None:
        return False
    return said is None or not (
        said.content
        or said.reasoning_content
        or said.reasoning
        or said.refusal
        or said.tool_calls
        or said.function_call is not None
    )


def text_of(content: Any) -> str:
    """The words of a `content` that is a string, a list of parts, or null."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _chunk(choice: ChoiceBody, said: DeltaBody | None) -> Chunk:
    chunk = Chunk(wire=WIRE, index=choice.index, text=choice.text or "")
    if said is not None:
        chunk.text = text_of(said.content) or said.refusal or ""
        chunk.reasoning = said.reasoning_content or said.reasoning or ""
        if said.tool_calls:
            chunk.tool_calls = tuple(_call(n.index, n.id, n.function) for n in _numbered(said))
        elif said.function_call is not None:
            chunk.tool_calls = (_call(0, None, said.function_call),)
    if choice.finish_reason:
        chunk.finish = plain_finish(choice.finish_reason)
    # vLLM and SGLang name the stop sequence here, or the number of the token that ended the answer.
    met = choice.stop_reason or choice.matched_stop
    chunk.stop = met if isinstance(met, str) else None
    if choice.logprobs is not None:
        chunk.logprobs = _logprobs(choice.logprobs)
    return chunk


def _numbered(said: DeltaBody) -> list[Any]:
    # A whole message's calls carry no index: their place is their number.
    calls = said.tool_calls or []
    if len(calls) > 1 and all(call.index == 0 for call in calls):
        return [msgspec.structs.replace(call, index=place) for place, call in enumerate(calls)]
    return list(calls)


def _call(index: int, call_id: str | None, function: FunctionPiece | None) -> ToolCall:
    function = function or FunctionPiece()
    return ToolCall(index=index, id=call_id or None, name=function.name or None, arguments=function.arguments or "")


def _logprobs(body: LogprobsBody) -> tuple[TokenLogprob, ...]:
    if body.content is not None:
        return tuple(_token(piece) for piece in body.content)
    pairs = zip(body.tokens or (), body.token_logprobs or (), strict=False)
    return tuple(TokenLogprob(token=token, logprob=0.0 if value is None else value) for token, value in pairs)


def _token(piece: LogprobPiece) -> TokenLogprob:
    return TokenLogprob(
        token=piece.token,
        logprob=0.0 if piece.logprob is None else piece.logprob,
        bytes=None if piece.bytes is None else tuple(piece.bytes),
        top=tuple(_token(other) for other in piece.top_logprobs or ()),
    )


def _first(*numbers: int | None) -> int:
    for number in numbers:
        if number is not None:
            return number
    return 0
