"""Answers as llama-server's clients read them: the engine's own bytes, a stream folded, or another backend's written anew."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Encoder
from hostler.adapters.errors import BackendBroken, GatewayError
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.llamacpp.completion import asks_for_tokens, prompt
from hostler.adapters.llamacpp.errors import error_event
from hostler.adapters.llamacpp.operations import COMPLETIONS
from hostler.adapters.llamacpp.schema import JSON, WIRE
from hostler.adapters.llamacpp.upstream import is_object
from hostler.adapters.progress import PREFIX, progress_line
from hostler.adapters.types import (
    Chunk,
    CompletionRequest,
    Control,
    Passthrough,
    Progress,
    Request,
    ResponseHead,
    Usage,
)

_decode = msgspec.json.Decoder().decode
_PROBABILITIES = "completion_probabilities"


class CompletionFold:
    """Collects events. `tokens`: the client asked for the tokens, which a stream tells in any case."""

    __slots__ = ("_last", "_probabilities", "_text", "_tokens", "_tokens_asked")

    def __init__(self, *, tokens: bool) -> None:
        self._tokens_asked = tokens
        self._text: list[str] = []
        self._tokens: list[Any] = []
        self._probabilities: list[tuple[bool, list[Any]]] = []
        self._last: dict[str, Any] = {}

    def add_events(self, block: bytes) -> None:
        """Takes in all events of a block of whole events. Raises `BackendBroken` for what cannot be one."""
        for _, data in sse.iter_events(block):
            try:
                event = _decode(data)
            except NOT_JSON:
                words = "The backend's answer holds an event that is not what the protocol allows."
                raise BackendBroken(words) from None
            if isinstance(event, dict):
                self._add(event)

    def result(self) -> bytes:
        """The whole answer: the last event, with what the others told of the words."""
        answer = {name: value for name, value in self._last.items() if name != "prompt_progress"}
        answer["content"] = "".join(self._text)
        answer["tokens"] = self._tokens if self._tokens_asked else []
        settings = answer.get("generation_settings")
        if isinstance(settings, dict) and "stream" in settings:
            settings["stream"] = False
        said = self._probabilities
        if answer.get("stop_type") == "word":
            # What turned out to be the beginning of a stop word was held back, and does not count in a whole answer.
            while said and said[-1][0]:
                said.pop()
        answer.pop(_PROBABILITIES, None)
        if said:
            answer[_PROBABILITIES] = [entry for _, entries in said for entry in entries]
        return msgspec.json.encode(answer)

    def _add(self, event: dict[str, Any]) -> None:
        text = event.get("content")
        if isinstance(text, str):
            self._text.append(text)
        tokens = event.get("tokens")
        if isinstance(tokens, list):
            self._tokens += tokens
        probabilities = event.get(_PROBABILITIES)
        if isinstance(probabilities, list):
            self._probabilities.append((not text, probabilities))
        self._last = event


_encode = msgspec.json.encode


class LlamaCppEncoder(Encoder):
    """One answer to one client."""

    def __init__(self, request: Request, *, progress: str) -> None:
        origin = request.origin
        self._request = request
        self.streaming = isinstance(request, CompletionRequest | Passthrough) and request.output.stream
        self._tokens = (
            origin.operation in COMPLETIONS
            and not self.streaming
            and is_object(origin.body)
            and asks_for_tokens(origin.body)
        )
        self._progress = progress
        self.start(ResponseHead(media_type=JSON))

    def start(self, head: ResponseHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        self._fold = CompletionFold(tokens=self._tokens)
        self._whole = bytearray()
        self._written = 0
        self._usage: Usage | None = None
        self._finish: str | None = None
        self.length = None
        events = head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._folds = events and not self.streaming
        if self.streaming:
            self.media_type = head.media_type if events else sse.MEDIA_TYPE
        else:
            self.media_type = JSON if events else head.media_type or "application/octet-stream"
            self.length = None if events else head.length

    def encode(self, chunk: Chunk) -> bytes:
        """The bytes for the client that this chunk gives; empty while a whole answer is still being folded."""
        if chunk.wire != WIRE:
            return self._anew(chunk)
        if self.streaming and chunk.is_body:
            self._whole += chunk.raw
            return b""
        if self._folds:
            self._fold.add_events(chunk.raw)
            return b""
        return chunk.raw

    def finish(self) -> bytes:
        """What ends the answer: the folded whole; nothing after an engine's stream, which has told its end itself."""
        if isinstance(self._request, Control):
            return b'{"success":true}'
        last = b""
        if self._written:
            last = self._said(sse.event(_encode(self._last())))
        if self.streaming:
            return last or _told(bytes(self._whole))
        if not self._folds:
            return b""
        body = self._fold.result()
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """A sign of life: a comment, as llama-server sends them itself."""
        if not self.streaming or self._progress == "off":
            return b""
        return sse.comment(PREFIX + progress_line(progress)) + b"\n"

    def error(self, error: GatewayError) -> bytes:
        """The error inside the stream. There is nothing else that ends one."""
        return error_event(error) if self.streaming else b""

    def _anew(self, chunk: Chunk) -> bytes:
        """An answer of another protocol, as the engine would tell it."""
        self._written += 1
        self._folds = not self.streaming
        self.media_type, self.length = (sse.MEDIA_TYPE if self.streaming else JSON), None
        self._usage = chunk.usage or self._usage
        self._finish = chunk.finish or self._finish
        if not chunk.text:
            return b""
        piece = {"index": 0, "content": chunk.text, "tokens": [], "stop": False, "id_slot": -1}
        return self._said(sse.event(_encode({**piece, "tokens_predicted": self._written})))

    def _said(self, event: bytes) -> bytes:
        if self.streaming:
            return event
        self._fold.add_events(event)
        return b""

    def _last(self) -> dict[str, Any]:
        usage = self._usage or Usage()
        request = self._request
        return {
            "index": 0,
            "content": "",
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": request.model or "",
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": {},
            "prompt": prompt(request.origin.body),
            "has_new_line": False,
            "truncated": False,
            "stop_type": "limit" if self._finish == "length" else "eos",
            "stopping_word": "",
            "tokens_cached": usage.cached_tokens,
            "timings": {
                "cache_n": usage.cached_tokens,
                "prompt_n": usage.prompt_tokens - usage.cached_tokens,
                "predicted_n": usage.completion_tokens,
            },
        }


def _told(body: bytes) -> bytes:
    """A whole answer told as a stream, for an engine that does not stream though it was asked to."""
    try:
        return sse.event(msgspec.json.format(body, indent=-1)) if body else b""
    except NOT_JSON:
        return b""
