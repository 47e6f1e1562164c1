"""Responses in Ollama's protocol: JSON lines or one object, encoded from chunks of any protocol."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from hostler.adapters import json_body
from hostler.adapters.base import Encoder, Timing
from hostler.adapters.canonical import (
    ChatRequest,
    Chunk,
    CompletionRequest,
    Conversation,
    EmbedRequest,
    LoadRequest,
    Progress,
    Request,
    ResponseHead,
    Text,
    TokenLogprob,
    Usage,
)
from hostler.adapters.errors import GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.ollama import go_compat, requests
from hostler.adapters.ollama.context import pack_context
from hostler.adapters.ollama.errors import error_line
from hostler.adapters.ollama.go_compat import format_time, nanoseconds
from hostler.adapters.ollama.schema import JSON, LINES, WIRE
from hostler.adapters.progress import ProgressLines
from hostler.adapters.tool_calls import ObjectEnd

# A backend of this protocol puts its own name of the model first in each line.
_DURATIONS = (b'"total_duration"', b'"load_duration"', b'"prompt_eval_duration"', b'"eval_duration"')
_CACHED = "prompt_eval_cached_count"
_MODEL = re.compile(rb'^([ \t]*\{\s*"model"\s*:\s*)"(?:[^"\\]|\\.)*"', re.MULTILINE)


class _OpenCall:
    """A call that may still grow."""

    __slots__ = ("_end", "id", "name", "pieces")

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.pieces: list[str] = []
        self._end = ObjectEnd()

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a whole object."""
        return self._end.is_complete

    def add(self, piece: str) -> None:
        """Add the next piece of the arguments."""
        self.pieces.append(piece)
        self._end.feed(piece)


class OllamaEncoder(Encoder):
    """One response: lines, or one object. Each line has its own time if a clock is set.

    A client that waits gets lines without content, with the progress as thinking if it has asked for thinking.
    """

    def __init__(self, request: Request, *, response_id: str, created: int, progress: str = "off") -> None:
        self._request = request
        self._progress = progress
        self._progress_lines = ProgressLines()
        self._operation = request.origin.operation
        self._model = request.model or ""
        output = request.output if isinstance(request, ChatRequest | CompletionRequest) else None
        with_logprobs = output is not None and output.logprobs is not None
        self._top_logprobs = requests.decode_top_logprobs(request.origin.body) if with_logprobs else -1
        # With a limit of 0, engines generate a token all the same.
        self._is_silent = _max_tokens(request) == 0
        self._id = response_id
        self._created = format_time(created)
        self._clock: Callable[[], float] | None = None
        self._timing: Timing | None = None
        self.streaming = output is not None and output.stream
        self.start(ResponseHead())

    def set_progress(self, progress: str) -> None:
        self._progress = progress

    def set_clock(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def set_timing(self, timing: Timing) -> None:
        self._timing = timing

    def start(self, head: ResponseHead) -> None:
        self.media_type = LINES if self.streaming else JSON
        self._head = head
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._vectors: list[msgspec.Raw] = []
        self._open_calls: dict[int, _OpenCall] = {}
        self._calls: list[dict[str, Any]] = []
        self._usage: Usage | None = None
        self._finish: str | None = None
        self._forwarded_body = b""
        self._forwards_stream = False

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.index:
            return b""
        self._usage = chunk.usage or self._usage
        self._finish = chunk.finish or self._finish
        if chunk.wire == WIRE and chunk.raw and self.streaming != chunk.is_body:
            return self._forward(chunk.raw, is_last=chunk.finish is not None)
        if self._is_silent and (chunk.text or chunk.reasoning):
            chunk = msgspec.structs.replace(chunk, text="", reasoning="", logprobs=())
        if chunk.vectors:
            self._vectors += map(self._encode_vector, chunk.vectors)
        lines: list[bytes] = []
        calls = self._collect_calls(chunk)
        if chunk.text or chunk.reasoning or chunk.logprobs:
            self._text.append(chunk.text)
            self._reasoning.append(chunk.reasoning)
            logprobs = self._encode_logprobs(chunk.logprobs)
            if self.streaming:
                lines.append(self._line(chunk.text, chunk.reasoning, logprobs))
            else:
                self._logprobs += logprobs
        if calls:
            self._calls += calls
            if self.streaming:
                # One call per line: some clients read only the first one of a line.
                lines += [self._line("", "", [], call) for call in calls]
        return b"".join(lines)

    def finish(self) -> bytes:
        if isinstance(self._request, EmbedRequest) or self._operation in ("embed", "embeddings"):
            return self._forwarded_body or go_compat.encode_json(self._embeddings())
        if self._forwards_stream or self._forwarded_body:
            return self._forwarded_body
        if isinstance(self._request, LoadRequest):
            kind = self._request.kind
            body = {**self._frame(self._message("", "", [])), "done": True, "done_reason": kind}
            return go_compat.encode_json(body)
        calls = self._complete_calls()
        lines = b""
        if self.streaming:
            lines = b"".join(self._line("", "", [], call) for call in calls)
            last = self._frame(self._message("", "", []))
        else:
            text, reasoning = "".join(self._text), "".join(self._reasoning)
            last = self._frame(self._message(text, reasoning, self._calls + calls))
        last |= {"done": True, "done_reason": "length" if self._finish == "length" else "stop"}
        if self._operation == "generate" and isinstance(self._request, ChatRequest):
            last["context"] = pack_context(self._context_messages(self._request.conversation))
        last |= self._counts()
        if self._logprobs:
            last["logprobs"] = self._logprobs
        return lines + (go_compat.encode_line(last) if self.streaming else go_compat.encode_json(last))

    def heartbeat(self, progress: Progress) -> bytes:
        """A line without content: the protocol has neither comments nor pings."""
        if not self.streaming or self._progress in ("off", "comments"):
            return b""
        text = self._progress_lines.next(progress) if self._progress == "thinking" and self._thinks else ""
        return self._line("", f"{text}\n" if text else "", [])

    @property
    def _thinks(self) -> bool:
        """Whether the client has asked for reasoning, for a person to read."""
        request = self._request
        if not isinstance(request, ChatRequest) or request.conversation is None or request.output.schema is not None:
            return False
        return bool(request.conversation.thinking)

    def error(self, error: GatewayError) -> bytes:
        return error_line(error, self._operation) if self.streaming else b""

    def _forward(self, raw: bytes, *, is_last: bool) -> bytes:
        """A backend's own bytes, with the model's name as the client knows it."""
        name = msgspec.json.encode(self._model)
        patched = _MODEL.sub(lambda match: match[1] + name, raw)
        if is_last:
            patched = self._with_durations(patched)
        if self.streaming == ("ndjson" in self._head.media_type.lower()):
            self.media_type = self._head.media_type
        if self.streaming:
            self._forwards_stream = True
            return patched
        self._forwarded_body = patched
        return b""

    def _frame(self, content: dict[str, Any]) -> dict[str, Any]:
        created_at = self._created if self._clock is None else format_time(self._clock())
        return {"model": self._model, "created_at": created_at, **content}

    def _message(self, text: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        thinking = {"thinking": reasoning} if reasoning else {}
        tool_calls = {"tool_calls": calls} if calls else {}
        if self._operation == "generate":
            return {"response": text, **thinking, **tool_calls}
        return {"message": {"role": "assistant", "content": text, **thinking, **tool_calls}}

    def _line(
        self, text: str, reasoning: str, logprobs: list[dict[str, Any]], call: dict[str, Any] | None = None
    ) -> bytes:
        line = self._frame(self._message(text, reasoning, [call] if call else []))
        line["done"] = False
        if logprobs:
            line["logprobs"] = logprobs
        return go_compat.encode_line(line)

    def _collect_calls(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Add the pieces of calls in a chunk; returns the calls that are complete by now, in their order."""
        complete: list[dict[str, Any]] = []
        for piece in chunk.tool_calls:
            if piece.index not in self._open_calls:
                # Pieces of several calls may alternate: only whole ones are closed when another one begins.
                complete += self._complete_calls(only_whole=True)
                self._open_calls[piece.index] = _OpenCall(piece.id or "", piece.name or "")
            self._open_calls[piece.index].add(piece.arguments)
        if chunk.finish:
            complete += self._complete_calls()
        return complete

    def _complete_calls(self, *, only_whole: bool = False) -> list[dict[str, Any]]:
        """Close the open calls. `only_whole`: up to the first whose arguments are not complete."""
        complete = []
        for index in sorted(self._open_calls):
            call = self._open_calls[index]
            if only_whole and not call.is_complete:
                break
            name, arguments = call.name, "".join(call.pieces)
            try:
                parsed = msgspec.json.decode(arguments or "{}", type=dict[str, msgspec.Raw])
            except NOT_JSON:
                # The model's mistake, not its server's: neither a retry nor an open circuit would help.
                problem = f"llama-server returned invalid tool call arguments for {go_compat.quote(name)}"
                error = GatewayError(f"{problem}: {arguments[:200]}")
                error.log_message = problem
                raise error from None
            del self._open_calls[index]
            made_up = hashlib.sha256(f"{self._id}/{index}".encode()).hexdigest()[:8]
            function = {"index": index, "name": name, "arguments": parsed}
            complete.append({"id": call.id or f"call_{made_up}", "function": function})
        return complete

    def _encode_logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        if self._top_logprobs < 0:
            return []
        entries = []
        for token in logprobs:
            entry = _logprob(token)
            if self._top_logprobs:
                entry["top_logprobs"] = [_logprob(other) for other in token.top[: self._top_logprobs]]
            entries.append(entry)
        return entries

    def _context_messages(self, conversation: Conversation | None) -> list[tuple[str, str]]:
        messages = [
            (message.role, "".join(part.text for part in message.parts if isinstance(part, Text)))
            for message in (conversation.messages if conversation is not None else ())
        ]
        return [*messages, ("assistant", "".join(self._text))]

    def _with_durations(self, raw: bytes) -> bytes:
        """The end of a backend's own answer, with the durations that some servers leave out and clients require."""
        if all(name in raw for name in _DURATIONS):
            return raw
        counts = self._counts()
        missing = {name: b"%d" % value for name, value in counts.items() if name.endswith("_duration")}
        known = json_body.members(raw)
        return json_body.patch(raw, {name: value for name, value in missing.items() if name not in known}, known)

    def _counts(self) -> dict[str, int]:
        usage = self._usage or Usage()
        prompt_s, completion_s = (usage.prompt_ms or 0.0) / 1000, (usage.completion_ms or 0.0) / 1000
        timing = self._timing or Timing(total_s=prompt_s + completion_s)
        # As in Ollama, where no duration is 0, and the counts are left out if they are, except for the cached part of one.
        counts = {
            "total_duration": max(1, nanoseconds(timing.total_s)),
            "load_duration": max(1, nanoseconds(timing.queue_s + timing.switch_s)),
            "prompt_eval_count": usage.prompt_tokens,
            _CACHED: usage.cached_tokens,
            "prompt_eval_duration": max(1, nanoseconds(prompt_s)),
            "eval_count": usage.completion_tokens,
            "eval_duration": max(1, nanoseconds(completion_s)),
        }
        return {name: count for name, count in counts.items() if count or (name == _CACHED and usage.prompt_tokens)}

    def _encode_vector(self, vector: tuple[float, ...]) -> msgspec.Raw:
        """Encoded one by one: there may be millions of numbers."""
        if self._operation == "embeddings":
            return msgspec.Raw(msgspec.json.encode(vector))
        size = self._request.dimensions if isinstance(self._request, EmbedRequest) else None
        return msgspec.Raw(msgspec.json.encode(_unit(vector[:size])))

    def _embeddings(self) -> dict[str, Any]:
        if self._operation == "embeddings":
            return {"embedding": self._vectors[0] if self._vectors else ()}
        body: dict[str, Any] = {"model": self._model, "embeddings": self._vectors}
        counts = self._counts()
        names = ("total_duration", "load_duration", "prompt_eval_count")
        return body | ({name: counts[name] for name in names if name in counts} if self._vectors else {})


def _max_tokens(request: Request) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.sampling.max_tokens if request.sampling is not None else None
    conversation = request.conversation if isinstance(request, ChatRequest) else None
    return conversation.sampling.max_tokens if conversation is not None else None


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    encoded = token.bytes if token.bytes is not None else tuple(token.token.encode())
    return {"token": token.token, "logprob": token.logprob, "bytes": encoded}


def _unit(vector: tuple[float, ...]) -> list[float]:
    length = math.sqrt(math.fsum(number * number for number in vector))
    return [number / length for number in vector] if length else list(vector)
