"""Answers as OpenAI clients read them: a backend's own bytes where they fit, chunks of another protocol written anew."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Encoder
from hostler.adapters.errors import GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.errors import error_event, response_error_event
from hostler.adapters.openai.fold import AnswerFold, misshapen, objects
from hostler.adapters.progress import PREFIX, progress_line
from hostler.adapters.types import (
    Chunk,
    Progress,
    Request,
    ResponseHead,
    TokenLogprob,
    Usage,
    output_of,
)

_encode = msgspec.json.encode
# What llama-server calls its whole answers, which are the ones that are folded.
_FOLDED = "application/json; charset=utf-8"
_IDS = {"chat": "chatcmpl-", "completions": "cmpl-"}


class OpenAIEncoder(Encoder):
    """One answer to one client. Ids and times are given, for answers that came in another protocol."""

    def __init__(self, request: Request, *, response_id: str, created: int, progress: str) -> None:
        output = output_of(request)
        if progress == "thinking" and (output.schema is not None or output.choices > 1):
            # Structured output and several choices are read by programs: nothing to read for a person then.
            progress = "quiet"
        self._operation = request.origin.operation
        self._wire = request.origin.wire
        self.streaming = output.stream
        self._include_usage = output.include_usage
        self._model = request.model or ""
        self._base64 = self._operation == "embeddings" and b'"base64"' in request.origin.body
        # The gateway's own ids become ones as OpenAI gives them.
        ours = response_id.startswith("req-") and self._operation in _IDS
        self._id = _IDS[self._operation] + response_id.removeprefix("req-") if ours else response_id
        self._created = created
        self._progress = progress
        self._spoke = False
        self.media_type = sse.MEDIA_TYPE if output.stream else _FOLDED
        self._forget()

    def start(self, head: ResponseHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        if self._written or self._whole:
            self._forget()
        self.length = None
        events = head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self.media_type = head.media_type
        if self.streaming:
            self.media_type = head.media_type if events else sse.MEDIA_TYPE
        elif events:
            self.media_type = _FOLDED
        else:
            self.length = head.length

    def _forget(self) -> None:
        self._folding: AnswerFold | None = None
        self._whole = bytearray()
        self._roles: set[int] = set()
        self._usage: Usage | None = None
        self._vectors: list[tuple[float, ...]] = []
        self._written = False
        self.length = None

    @property
    def _fold(self) -> AnswerFold:
        if self._folding is None:
            self._folding = AnswerFold()
        return self._folding

    def encode(self, chunk: Chunk) -> bytes:
        """The bytes for the client that this chunk gives; empty while a whole answer is still being folded."""
        if chunk.wire == self._wire:
            if self.streaming:
                if not chunk.is_body:
                    return chunk.raw
                self._whole += chunk.raw
            elif chunk.is_body:
                return chunk.raw
            elif chunk.raw:
                self._written = True
                self._fold.add_events(chunk.raw)
            return b""
        self._written = True
        if self._operation == "embeddings":
            self._vectors += chunk.vectors
            self._usage = chunk.usage or self._usage
            return b""
        self.length = None
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"
        written = [self._event(*said) for said in self._said(chunk)]
        if self.streaming:
            return b"".join(sse.event(_encode(event)) for event in written)
        for event in written:
            self._fold.add(event)
        return b""

    def finish(self) -> bytes:
        """What ends the answer: the folded whole, or the stream's last events."""
        if self.streaming:
            if self._whole:
                return self._streamed(bytes(self._whole))
            if not self._written:
                return b""
            last = b"data: [DONE]\n\n"
            if self._include_usage and self._usage is not None:
                last = sse.event(_encode({**self._frame(), "choices": [], "usage": _usage(self._usage)})) + last
            return last
        if not self._written:
            return b""
        if self._operation == "embeddings":
            body = self._embeddings()
        else:
            if self._usage is not None:
                self._fold.add({"usage": _usage(self._usage)})
            body = self._fold.result()
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """A sign of life: first a comment and the role, then a chunk that says what is being waited for."""
        if not self.streaming or self._progress == "off":
            return b""
        line = progress_line(progress)
        if self._progress == "comments" or self._operation not in ("chat", "completions"):
            return sse.comment(PREFIX + line)
        if not self._spoke:
            self._spoke = True
            return sse.comment(PREFIX + line) + self._sign({"role": "assistant", "content": ""}, None)
        delta = {"reasoning_content": f"{PREFIX}{line}\n"} if self._progress == "thinking" else {}
        return self._sign(delta, progress)

    def error(self, error: GatewayError) -> bytes:
        """The error inside the stream, and its end."""
        if not self.streaming:
            return b""
        return response_error_event(error) if self._operation == "responses" else error_event(error)

    def _sign(self, delta: dict[str, str], progress: Progress | None) -> bytes:
        event = self._event(0, delta if self._operation == "chat" else "", None, ())
        if progress is not None:
            event["x_hostler"] = {
                "phase": progress.phase,
                "model": progress.model,
                "from": progress.from_model,
                "position": progress.position,
                "percent": progress.percent,
                "eta_s": progress.eta_s,
            }
        return sse.event(_encode(event))

    def _frame(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._operation == "chat" else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _event(
        self, index: int, delta: dict[str, Any] | str, finish: str | None, logprobs: tuple[TokenLogprob, ...]
    ) -> dict[str, Any]:
        said = {"text": delta} if isinstance(delta, str) else {"delta": delta}
        choice = {"index": index, **said, "logprobs": _logprobs(logprobs), "finish_reason": finish}
        return {**self._frame(), "choices": [choice]}

    def _said(self, chunk: Chunk) -> list[tuple[int, dict[str, Any] | str, str | None, tuple[TokenLogprob, ...]]]:
        """The events that a chunk of another protocol becomes."""
        said: list[tuple[int, dict[str, Any] | str, str | None, tuple[TokenLogprob, ...]]] = []
        index = chunk.index
        if chunk.usage is not None:
            self._usage = chunk.usage
        if self._operation == "completions":
            if chunk.text or chunk.logprobs:
                said.append((index, chunk.text, None, chunk.logprobs))
            if chunk.finish:
                said.append((index, "", chunk.finish, ()))
            return said
        if index not in self._roles:
            self._roles.add(index)
            said.append((index, {"role": "assistant", "content": None if chunk.tool_calls else ""}, None, ()))
        if chunk.reasoning:
            said.append((index, {"reasoning_content": chunk.reasoning}, None, ()))
        if chunk.text or chunk.logprobs:
            said.append((index, {"content": chunk.text}, None, chunk.logprobs))
        if chunk.tool_calls:
            calls = []
            for call in chunk.tool_calls:
                function: dict[str, Any] = {"arguments": call.arguments}
                piece: dict[str, Any] = {"index": call.index}
                if call.name is not None:
                    piece |= {"id": call.id or f"call_{self._id.rpartition('-')[2]}_{call.index}", "type": "function"}
                    function = {"name": call.name, **function}
                calls.append({**piece, "function": function})
            said.append((index, {"tool_calls": calls}, None, ()))
        if chunk.finish:
            said.append((index, {}, chunk.finish, ()))
        return said

    def _embeddings(self) -> bytes:
        usage = self._usage or Usage()
        written = [base64.b64encode(array("f", v)).decode() for v in self._vectors] if self._base64 else self._vectors
        answer = {
            "object": "list",
            "data": [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(written)],
            "model": self._model,
            "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
        }
        return _encode(answer)

    def _streamed(self, body: bytes) -> bytes:
        """A whole answer told as a stream, for a backend that does not stream though it was asked to."""
        try:
            answer = msgspec.json.decode(body, type=dict[str, Any])
        except NOT_JSON:
            raise misshapen() from None
        if self._operation == "responses":
            return b"".join(
                sse.event(_encode({"type": kind, "response": answer}), kind)
                for kind in ("response.created", "response.completed")
            )
        usage = answer.pop("usage", None)
        if self._operation == "chat":
            answer["object"] = "chat.completion.chunk"
            for choice in objects(answer.get("choices")):
                choice["delta"] = delta = objects([choice.pop("message", None) or {}])[0]
                for place, call in enumerate(objects(delta.get("tool_calls"))):
                    call["index"] = place
        written = sse.event(_encode(answer))
        if usage is not None and self._include_usage:
            written += sse.event(_encode({**answer, "choices": [], "usage": usage}))
        return written + b"data: [DONE]\n\n"


def _usage(usage: Usage) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def _logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
    return {"content": logprob_list(logprobs)} if logprobs else None


def logprob_list(logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
    """Log probabilities as this protocol lists them."""
    return [_token(token) for token in logprobs]


def _token(token: TokenLogprob) -> dict[str, Any]:
    said = {"token": token.token, "logprob": token.logprob, "bytes": token.bytes or tuple(token.token.encode())}
    return {**said, "top_logprobs": [_alternative(other) for other in token.top]}


def _alternative(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes or tuple(token.token.encode())}
