"""Responses in OpenAI's protocol: a backend's own bytes where they fit, chunks of other protocols encoded anew."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import msgspec

from hostler.adapters import lenient, sse
from hostler.adapters.base import Encoder, is_media
from hostler.adapters.canonical import (
    Chunk,
    Progress,
    Request,
    ResponseHead,
    TokenLogprob,
    ToolCall,
    Usage,
    output_of,
)
from hostler.adapters.errors import GatewayError, invalid_event
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.call_events import whole_calls
from hostler.adapters.openai.chat_tools import custom_tools
from hostler.adapters.openai.chunks import canonical_finish
from hostler.adapters.openai.custom_tools import InputReader
from hostler.adapters.openai.errors import error_event
from hostler.adapters.openai.fold import StreamFold, objects
from hostler.adapters.openai.schema import CUSTOM_CHAT
from hostler.adapters.progress import ProgressLines

_encode = msgspec.json.encode
# llama-server's media type of whole responses: those that are folded come from it.
_FOLDED = "application/json; charset=utf-8"
_DONE = b"data: [DONE]\n\n"
# The answer may be sound although events are asked for.
_WITHOUT_EVENTS = frozenset({"speech"})
# Operations whose streams have pieces of one response, so that they can be folded. Others pass as they come.
_FOLDABLE = frozenset({"chat", "completions", "responses"})
_ID_PREFIXES = {"chat": "chatcmpl-", "completions": "cmpl-"}

# Index, delta (or text), finish reason and log probabilities of a choice.
_Piece = tuple[int, dict[str, Any] | str, str | None, tuple[TokenLogprob, ...]]


class OpenAIEncoder(Encoder):
    """One response. A backend's own bytes are forwarded; chunks of another protocol are encoded with the given id."""

    def __init__(self, request: Request, *, response_id: str, created: int, progress: str) -> None:
        output = output_of(request)
        # Structured output and several choices are for programs: no progress lines.
        self._for_programs = output.schema is not None or output.choices > 1
        self._operation = request.origin.operation
        self._passes = self._operation not in _FOLDABLE
        self._wire = request.origin.wire
        self._include_usage = output.include_usage
        self._model = request.model or ""
        self._base64 = self._operation == "embeddings" and b'"base64"' in request.origin.body
        # The gateway's request ids get OpenAI's prefixes.
        is_request_id = response_id.startswith("req-") and self._operation in _ID_PREFIXES
        self._id = _ID_PREFIXES[self._operation] + response_id.removeprefix("req-") if is_request_id else response_id
        self._created = created
        self.set_progress(progress)
        self._lines = ProgressLines()
        document = request.origin.json_body
        self._custom_tools = custom_tools(document) if self._wire == CUSTOM_CHAT and document else frozenset[str]()
        self._role_sent = False
        self._asked = self.streaming = output.stream
        self.media_type = sse.MEDIA_TYPE if output.stream else _FOLDED
        self._reset()

    def set_progress(self, progress: str) -> None:
        self._progress = "quiet" if progress == "thinking" and self._for_programs else progress

    def start(self, head: ResponseHead) -> None:
        if self._has_output or self._body:
            self._reset()
        self.length = None
        is_stream = head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self.media_type = head.media_type
        self.streaming, self.status = self._asked, 200
        if self._passes:
            self.status = head.status
            self.streaming = is_stream or (self._asked and not is_media(head.media_type))
        if self.streaming:
            self.media_type = head.media_type if is_stream else sse.MEDIA_TYPE
        elif is_stream and not self._passes:
            self.media_type = _FOLDED
        elif not is_stream:
            self.length = head.length

    def _reset(self) -> None:
        self._fold_or_none: StreamFold | None = None
        self._body = bytearray()
        self._roles: set[int] = set()
        self._usage: Usage | None = None
        self._vectors: list[tuple[float, ...]] = []
        self._inputs: dict[tuple[int, int], InputReader] = {}
        self._has_output = False
        self.length = None

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.wire == self._wire:
            if self.streaming:
                if not chunk.is_body:
                    return chunk.raw
                self._body += chunk.raw
            elif chunk.is_body or self._passes:
                return chunk.raw
            elif chunk.raw:
                self._has_output = True
                self._fold.add_events(chunk.raw)
            return b""
        self._has_output = True
        if self._operation == "embeddings":
            self._vectors += chunk.vectors
            self._usage = chunk.usage or self._usage
            return b""
        self.length = None
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"
        events = [self._event(*piece) for piece in self._pieces(chunk)]
        if self.streaming:
            return b"".join(sse.event(_encode(event)) for event in events)
        for event in events:
            self._fold.add(event)
        return b""

    def finish(self) -> bytes:
        if self.streaming:
            if self._body:
                return self._as_stream(bytes(self._body))
            if not self._has_output:
                return b""
            if self._include_usage and self._usage is not None:
                return sse.event(_encode({**self._frame(), "choices": [], **_usage(self._usage)})) + _DONE
            return _DONE
        if not self._has_output:
            return b""
        if self._operation == "embeddings":
            body = self._embeddings()
        else:
            if self._usage is not None:
                self._fold.add(_usage(self._usage))
            body = self._fold.result()
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """First a comment and the role, then chunks with the progress."""
        if not self.streaming or self._progress == "off" or self._operation in _WITHOUT_EVENTS:
            return b""
        line = self._lines.next(progress)
        if self._progress == "comments" or self._operation not in ("chat", "completions"):
            return sse.comment(line)
        if not self._role_sent:
            self._role_sent = True
            return sse.comment(line) + self._progress_event({"role": "assistant", "content": ""}, None)
        delta = {"reasoning_content": f"{line}\n"} if self._progress == "thinking" and line else {}
        return self._progress_event(delta, progress)

    def error(self, error: GatewayError) -> bytes:
        if not self.streaming:
            return b""
        return error_event(error)

    @property
    def _fold(self) -> StreamFold:
        if self._fold_or_none is None:
            self._fold_or_none = StreamFold()
        return self._fold_or_none

    def _progress_event(self, delta: dict[str, str], progress: Progress | None) -> bytes:
        event = self._event(0, delta if self._operation == "chat" else "", None, ())
        if progress is not None:
            event["x_hostler"] = {
                "phase": progress.phase,
                "model": progress.model,
                "from": progress.from_model,
                "position": progress.position,
                "percent": progress.percent,
                "eta_s": progress.eta_s,
                **({} if progress.elapsed_s is None else {"elapsed_s": round(progress.elapsed_s, 3)}),
                **({"overdue": True} if progress.overdue else {}),
            }
        return sse.event(_encode(event))

    def _frame(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._operation == "chat" else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _event(
        self, index: int, delta: dict[str, Any] | str, finish: str | None, logprobs: tuple[TokenLogprob, ...]
    ) -> dict[str, Any]:
        content = {"text": delta} if isinstance(delta, str) else {"delta": delta}
        choice = {"index": index, **content, "logprobs": _logprobs(logprobs), "finish_reason": finish}
        return {**self._frame(), "choices": [choice]}

    def _pieces(self, chunk: Chunk) -> list[_Piece]:
        """The events that a chunk of another protocol becomes."""
        pieces: list[_Piece] = []
        index = chunk.index
        if chunk.usage is not None:
            self._usage = chunk.usage
        if self._operation == "completions":
            if chunk.text or chunk.logprobs:
                pieces.append((index, chunk.text, None, chunk.logprobs))
            if chunk.finish:
                pieces.append((index, "", chunk.finish, ()))
            return pieces
        if index not in self._roles:
            self._roles.add(index)
            pieces.append((index, {"role": "assistant", "content": None if chunk.tool_calls else ""}, None, ()))
        if chunk.reasoning:
            pieces.append((index, {"reasoning_content": chunk.reasoning}, None, ()))
        if chunk.text or chunk.logprobs:
            pieces.append((index, {"content": chunk.text}, None, chunk.logprobs))
        if chunk.tool_calls:
            calls = [piece for call in chunk.tool_calls if (piece := self._tool_call(index, call))]
            if calls:
                pieces.append((index, {"tool_calls": calls}, None, ()))
        if chunk.finish:
            if rest := self._rest_of_inputs(index):
                pieces.append((index, {"tool_calls": rest}, None, ()))
            pieces.append((index, {}, chunk.finish, ()))
        return pieces

    def _tool_call(self, choice: int, call: ToolCall) -> dict[str, Any] | None:
        """The next piece of a call, that of a custom tool with its input; `None` if nothing of that is certain yet."""
        reader = self._inputs.get((choice, call.index))
        if call.name is None:
            if reader is None:
                return {"index": call.index, "function": {"arguments": call.arguments}}
            text = reader.feed(call.arguments)
            return {"index": call.index, "custom": {"input": text}} if text else None
        head = {"index": call.index, "id": call.id or f"call_{self._id.rpartition('-')[2]}_{call.index}"}
        if call.name not in self._custom_tools:
            return {**head, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        reader = self._inputs[choice, call.index] = InputReader()
        return {**head, "type": "custom", "custom": {"name": call.name, "input": reader.feed(call.arguments)}}

    def _rest_of_inputs(self, choice: int) -> list[dict[str, Any]]:
        """The pieces that complete the inputs of a choice's custom tools."""
        rest = [(at, self._inputs.pop((choice, at)).finish()) for each, at in tuple(self._inputs) if each == choice]
        return [{"index": at, "custom": {"input": text}} for at, text in rest if text]

    def _embeddings(self) -> bytes:
        usage = self._usage or Usage()
        vectors = [base64.b64encode(array("f", v)).decode() for v in self._vectors] if self._base64 else self._vectors
        response = {
            "object": "list",
            "data": [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)],
            "model": self._model,
            "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
        }
        return _encode(response)

    def _as_stream(self, body: bytes) -> bytes:
        """A whole response as a stream, for a backend that does not stream although it was asked to."""
        try:
            lenient.check_containers(body)
            response = msgspec.json.decode(body, type=dict[str, Any])
        except NOT_JSON:
            raise invalid_event() from None
        if self._operation == "responses":
            return b"".join(
                sse.event(_encode({"type": name, "response": response}), name)
                for name in ("response.created", "response.completed")
            )
        usage = response.pop("usage", None)
        for choice in objects(response.get("choices")):
            if not choice.get("finish_reason"):
                message = choice.get("message")
                has_calls = isinstance(message, dict) and message.get("tool_calls")
                choice["finish_reason"] = "tool_calls" if has_calls else "stop"
            choice["finish_reason"] = canonical_finish(choice["finish_reason"])
        if self._operation == "chat":
            response["object"] = "chat.completion.chunk"
            for choice in objects(response.get("choices")):
                choice["delta"] = delta = objects([choice.pop("message", None) or {}])[0]
                if calls := delta.get("tool_calls"):
                    delta["tool_calls"] = whole_calls(calls, self._id)
        stream = sse.event(_encode(response))
        if usage is not None and self._include_usage:
            stream += sse.event(_encode({**response, "choices": [], "usage": usage}))
        return stream + _DONE


def _usage(usage: Usage) -> dict[str, Any]:
    """The usage, and llama.cpp's timings where a backend of another protocol measured them."""
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    timings = _timings(usage) if usage.completion_ms else {}
    return {"usage": body, **timings}


def _timings(usage: Usage) -> dict[str, Any]:
    read = usage.prompt_tokens - usage.cached_tokens
    timings: dict[str, Any] = {"cache_n": usage.cached_tokens}
    counts = (("prompt", read, usage.prompt_ms), ("predicted", usage.completion_tokens, usage.completion_ms))
    for name, tokens, ms in counts:
        timings |= {f"{name}_n": tokens, f"{name}_ms": ms or 0.0}
        if ms and tokens:
            timings |= {f"{name}_per_token_ms": ms / tokens, f"{name}_per_second": 1000 * tokens / ms}
    return {"timings": timings}


def _logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    return {"content": encode_logprobs(logprobs)} if logprobs else None


def encode_logprobs(logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
    """Log probabilities in this protocol's form."""
    return [{**_token(token), "top_logprobs": [_token(other) for other in token.top]} for token in logprobs]


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes or tuple(token.token.encode())}
