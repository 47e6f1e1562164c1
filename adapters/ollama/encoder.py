"""Answers as Ollama's clients read them: one JSON object a line, or one in all, from chunks of any protocol."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from hostler.adapters.base import Encoder, Timing
from hostler.adapters.errors import GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.ollama import go_compat, requests
from hostler.adapters.ollama import requests as memory
from hostler.adapters.ollama.errors import error_line
from hostler.adapters.ollama.go_compat import nanoseconds, timestamp
from hostler.adapters.ollama.schema import JSON, LINES, WIRE
from hostler.adapters.types import (
    ChatRequest,
    Chunk,
    CompletionRequest,
    Control,
    Conversation,
    EmbedRequest,
    Request,
    ResponseHead,
    Text,
    TokenLogprob,
    Usage,
)

# A backend of this protocol names its own model first in each line.
_MODEL = re.compile(rb'^(\s*\{\s*"model"\s*:\s*)"(?:[^"\\]|\\.)*"', re.MULTILINE)


class OllamaEncoder(Encoder):
    """One answer to one client. The id and the time are given, for what has to be made up; with a clock, each line has its
    own."""

    def __init__(self, request: Request, *, response_id: str, created: int) -> None:
        self._request = request
        self._operation = request.origin.operation
        self._model = request.model or ""
        output = request.output if isinstance(request, ChatRequest | CompletionRequest) else None
        self.streaming = output is not None and output.stream
        asked = output is not None and output.logprobs is not None
        self._top = requests.alternatives(request.origin.body) if asked else -1
        # An engine that is to write nothing writes a token all the same.
        self._silent = _limit(request) == 0
        self._id = response_id
        self._created = timestamp(created)
        self._clock: Callable[[], float] | None = None
        self._timing: Timing | None = None
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._vectors: list[tuple[float, ...]] = []
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._done: list[dict[str, Any]] = []
        self._usage: Usage | None = None
        self._finish: str | None = None
        self._passed = b""
        self._spoken = False
        self._head = head
        self.media_type = LINES if self.streaming else JSON

    def set_clock(self, clock: Callable[[], float]) -> None:
        """Where the time of each line is read."""
        self._clock = clock

    def set_timing(self, timing: Timing) -> None:
        """How long all this took, for the last line."""
        self._timing = timing

    def encode(self, chunk: Chunk) -> bytes:
        """The lines that this chunk gives; empty while a whole answer is still being collected."""
        if chunk.index:
            return b""
        self._usage = chunk.usage or self._usage
        self._finish = chunk.finish or self._finish
        if chunk.wire == WIRE and chunk.raw and self.streaming != chunk.is_body:
            return self._pass(chunk.raw)
        if self._silent and (chunk.text or chunk.reasoning):
            chunk = msgspec.structs.replace(chunk, text="", reasoning="", logprobs=())
        self._vectors += chunk.vectors
        said: list[bytes] = []
        calls = self._collect(chunk)
        if chunk.text or chunk.reasoning or chunk.logprobs:
            self._text.append(chunk.text)
            self._reasoning.append(chunk.reasoning)
            logprobs = self._told(chunk.logprobs)
            if self.streaming:
                said.append(self._piece(chunk.text, chunk.reasoning, logprobs))
            else:
                self._logprobs += logprobs
        if calls:
            self._done += calls
            if self.streaming:
                # One call a line: there are clients that read only the first one of a line.
                said += [self._piece("", "", [], call) for call in calls]
        return b"".join(said)

    def finish(self) -> bytes:
        """The last line, or the whole answer."""
        if isinstance(self._request, EmbedRequest) or self._operation in ("embed", "embeddings"):
            return self._passed or go_compat.write(self._embeddings())
        if self._spoken or self._passed:
            return self._passed
        if isinstance(self._request, Control):
            kind = self._request.kind
            return go_compat.write({**self._frame(self._message("", "", [])), "done": True, "done_reason": kind})
        left = self._complete_calls(None)
        lines = b""
        if self.streaming:
            lines = b"".join(self._piece("", "", [], call) for call in left)
            last = self._frame(self._message("", "", []))
        else:
            said = "".join(self._text), "".join(self._reasoning)
            last = self._frame(self._message(*said, self._done + left))
        last |= {"done": True, "done_reason": "length" if self._finish == "length" else "stop"}
        if self._operation == "generate" and isinstance(self._request, ChatRequest):
            last["context"] = memory.pack(self._turns(self._request.conversation))
        last |= self._counts()
        if self._logprobs:
            last["logprobs"] = self._logprobs
        return lines + (go_compat.line(last) if self.streaming else go_compat.write(last))

    def error(self, error: GatewayError) -> bytes:
        """The error as the last line."""
        return error_line(error, self._operation) if self.streaming else b""

    def _pass(self, raw: bytes) -> bytes:
        """A backend's own bytes, with the model called what the client calls it."""
        name = msgspec.json.encode(self._model)
        patched = _MODEL.sub(lambda match: match[1] + name, raw)
        self.media_type = self._head.media_type
        if self.streaming:
            self._spoken = True
            return patched
        self._passed = patched
        return b""

    def _frame(self, said: dict[str, Any]) -> dict[str, Any]:
        created_at = self._created if self._clock is None else timestamp(self._clock())
        return {"model": self._model, "created_at": created_at, **said}

    def _message(self, text: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        thinking = {"thinking": reasoning} if reasoning else {}
        called = {"tool_calls": calls} if calls else {}
        if self._operation == "generate":
            return {"response": text, **thinking, **called}
        return {"message": {"role": "assistant", "content": text, **thinking, **called}}

    def _piece(
        self, text: str, reasoning: str, logprobs: list[dict[str, Any]], call: dict[str, Any] | None = None
    ) -> bytes:
        said = self._frame(self._message(text, reasoning, [call] if call else []))
        said["done"] = False
        if logprobs:
            said["logprobs"] = logprobs
        return go_compat.line(said)

    def _collect(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Takes in pieces of calls; gives the calls that are complete by now."""
        complete: list[dict[str, Any]] = []
        for piece in chunk.tool_calls:
            if piece.index not in self._calls:
                complete += self._complete_calls(piece.index)
                self._calls[piece.index] = (piece.id or "", piece.name or "", [])
            call_id, name, pieces = self._calls[piece.index]
            self._calls[piece.index] = (call_id or piece.id or "", name or piece.name or "", pieces)
            pieces.append(piece.arguments)
        if chunk.finish:
            complete += self._complete_calls(None)
        return complete

    def _complete_calls(self, before: int | None) -> list[dict[str, Any]]:
        """The calls whose pieces have all come: those in front of `before`, or all."""
        written = []
        for index in sorted(self._calls):
            if before is not None and index >= before:
                break
            call_id, name, pieces = self._calls.pop(index)
            arguments = "".join(pieces)
            try:
                parsed = msgspec.json.decode(arguments, type=dict[str, msgspec.Raw]) if arguments.strip() else {}
            except NOT_JSON:
                # The model's mistake, not its server's: nobody is to be left alone for it, nor asked again.
                raise GatewayError(
                    f"llama-server returned invalid tool call arguments for {go_compat.quoted(name)}: {arguments[:200]}"
                ) from None
            made_up = hashlib.sha256(f"{self._id}/{index}".encode()).hexdigest()[:8]
            function = {"index": index, "name": name, "arguments": parsed}
            written.append({"id": call_id or f"call_{made_up}", "function": function})
        return written

    def _told(self, logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        if self._top < 0:
            return []
        told = []
        for token in logprobs:
            entry = _logprob(token)
            if self._top:
                entry["top_logprobs"] = [_logprob(other) for other in token.top[: self._top]]
            told.append(entry)
        return told

    def _turns(self, conversation: Conversation | None) -> list[tuple[str, str]]:
        turns = [
            (message.role, "".join(part.text for part in message.parts if isinstance(part, Text)))
            for message in (conversation.messages if conversation is not None else ())
        ]
        return [*turns, ("assistant", "".join(self._text))]

    def _counts(self) -> dict[str, int]:
        usage = self._usage or Usage()
        reading, writing = (usage.prompt_ms or 0.0) / 1000, (usage.completion_ms or 0.0) / 1000
        timing = self._timing or Timing(total_s=reading + writing)
        counts = {
            "total_duration": nanoseconds(timing.total_s),
            "load_duration": nanoseconds(timing.queue_s + timing.switch_s),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(reading),
            "eval_count": usage.completion_tokens,
            "eval_duration": nanoseconds(writing),
        }
        return {name: count for name, count in counts.items() if count}

    def _embeddings(self) -> dict[str, Any]:
        request = self._request
        if self._operation == "embeddings":
            return {"embedding": self._vectors[0] if self._vectors else ()}
        size = request.dimensions if isinstance(request, EmbedRequest) else None
        answer: dict[str, Any] = {"model": self._model, "embeddings": [_unit(v[:size]) for v in self._vectors]}
        counts = self._counts()
        wanted = ("total_duration", "load_duration", "prompt_eval_count")
        return answer | ({name: counts[name] for name in wanted if name in counts} if self._vectors else {})


def _limit(request: Request) -> int | None:
    """How many tokens the client wants at most."""
    if isinstance(request, CompletionRequest):
        return request.sampling.max_tokens if request.sampling is not None else None
    conversation = request.conversation if isinstance(request, ChatRequest) else None
    return conversation.sampling.max_tokens if conversation is not None else None


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    spelled = token.bytes if token.bytes is not None else tuple(token.token.encode())
    return {"token": token.token, "logprob": token.logprob, "bytes": spelled}


def _unit(vector: tuple[float, ...]) -> list[float]:
    length = math.sqrt(math.fsum(number * number for number in vector))
    return [number / length for number in vector] if length else list(vector)
