"""Responses in llama-server's form: the engine's own bytes, a folded stream, or chunks of another protocol encoded."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import lenient, sse
from hostler.adapters.base import Encoder, is_media
from hostler.adapters.canonical import (
    Chunk,
    CompletionRequest,
    LoadRequest,
    Passthrough,
    Progress,
    Request,
    ResponseHead,
    Usage,
)
from hostler.adapters.errors import GatewayError, invalid_event
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.llamacpp.completion import prompt, wants_tokens
from hostler.adapters.llamacpp.errors import error_event
from hostler.adapters.llamacpp.operations import COMPLETIONS, UNKNOWN
from hostler.adapters.llamacpp.schema import JSON, WIRE
from hostler.adapters.llamacpp.upstream import is_object
from hostler.adapters.progress import ProgressLines

_PROBABILITIES = "completion_probabilities"
_encode = msgspec.json.encode


class LlamaCppEncoder(Encoder):
    """One response."""

    def __init__(self, request: Request, *, progress: str) -> None:
        origin = request.origin
        self._request = request
        self._progress = progress
        self._lines = ProgressLines()
        self._asked = self.streaming = isinstance(request, CompletionRequest | Passthrough) and request.output.stream
        self._passes = origin.operation not in COMPLETIONS
        self._wants_tokens = (
            origin.operation in COMPLETIONS
            and not self.streaming
            and is_object(origin.body)
            and wants_tokens(origin.body)
        )
        self.start(ResponseHead(media_type=JSON))

    def set_progress(self, progress: str) -> None:
        self._progress = progress

    def start(self, head: ResponseHead) -> None:
        self._fold = CompletionFold(tokens=self._wants_tokens)
        self._body = bytearray()
        self._token_count = 0
        self._usage: Usage | None = None
        self._finish: str | None = None
        self.length = None
        is_stream = head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self.streaming, self.status = self._asked, 200
        if self._passes:
            self.status = head.status
            self.streaming = is_stream or (self._asked and not is_media(head.media_type))
        self._folds = is_stream and not self.streaming and not self._passes
        if self.streaming:
            self.media_type = head.media_type if is_stream else sse.MEDIA_TYPE
        else:
            self.media_type = JSON if self._folds else head.media_type or "application/octet-stream"
            self.length = None if is_stream else head.length

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.wire != WIRE:
            return self._encode_foreign(chunk)
        if self.streaming and chunk.is_body:
            self._body += chunk.raw
            return b""
        if self._folds:
            self._fold.add_events(chunk.raw)
            return b""
        return chunk.raw

    def finish(self) -> bytes:
        """The folded response; nothing after an engine's stream, which contains its own end."""
        if isinstance(self._request, LoadRequest):
            return b'{"success":true}'
        last = b""
        if self._token_count:
            last = self._send_or_fold(sse.event(_encode(self._last_event())))
        if self.streaming:
            return last or _as_stream(bytes(self._body))
        if not self._folds:
            return b""
        body = self._fold.result()
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """A comment, as llama-server sends them itself; nothing where the stream may be none of events."""
        if not self.streaming or self._progress == "off" or self._request.origin.operation in UNKNOWN:
            return b""
        return sse.comment(self._lines.next(progress)) + b"\n"

    def error(self, error: GatewayError) -> bytes:
        """The error alone: the protocol has no other end mark."""
        return error_event(error) if self.streaming else b""

    def _encode_foreign(self, chunk: Chunk) -> bytes:
        """A chunk of another protocol, in the form of the engine's events."""
        self._token_count += 1
        self._folds = not self.streaming
        self.media_type, self.length = (sse.MEDIA_TYPE if self.streaming else JSON), None
        self._usage = chunk.usage or self._usage
        self._finish = chunk.finish or self._finish
        if not chunk.text:
            return b""
        event = {"index": 0, "content": chunk.text, "tokens": [], "stop": False, "id_slot": -1}
        return self._send_or_fold(sse.event(_encode({**event, "tokens_predicted": self._token_count})))

    def _send_or_fold(self, event: bytes) -> bytes:
        if self.streaming:
            return event
        self._fold.add_events(event)
        return b""

    def _last_event(self) -> dict[str, Any]:
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


class CompletionFold:
    """Folds the events of a stream into the whole response. `tokens`: with token ids, which streams always have."""

    __slots__ = ("_last", "_others", "_probabilities", "_text", "_tokens", "_with_tokens")

    def __init__(self, *, tokens: bool) -> None:
        self._with_tokens = tokens
        self._text: list[str] = []
        self._tokens: list[Any] = []
        self._probabilities: list[tuple[bool, list[Any]]] = []
        self._last: dict[str, Any] = {}
        self._others: dict[str, Any] = {}

    def add_events(self, block: bytes) -> None:
        """Add all events of a block of whole events. Raises `BackendBroken` for an invalid one."""
        for _, data in sse.iter_events(block):
            try:
                event = lenient.decode_exactly(data)
            except NOT_JSON:
                raise invalid_event() from None
            if isinstance(event, dict):
                self._add(event)

    def result(self) -> bytes:
        """The whole response: the last event, with text, tokens and probabilities of all."""
        others = {name: value for name, value in self._others.items() if name not in self._last}
        response = {name: value for name, value in (self._last | others).items() if name != "prompt_progress"}
        response["content"] = "".join(self._text)
        response["tokens"] = self._tokens if self._with_tokens else []
        settings = response.get("generation_settings")
        if isinstance(settings, dict) and "stream" in settings:
            settings["stream"] = False
        probabilities = self._probabilities
        if response.get("stop_type") == "word":
            # Tokens that were held back and became part of the stop sequence are not in a whole response.
            while probabilities and probabilities[-1][0]:
                probabilities.pop()
        response.pop(_PROBABILITIES, None)
        if probabilities:
            response[_PROBABILITIES] = [entry for _, entries in probabilities for entry in entries]
        return lenient.encode(response)

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
        if not self._last.keys() <= event.keys():
            # llama-server's last event has all of its fields; any other field keeps the value that it had last.
            self._others |= self._last
        self._last = event


def _as_stream(body: bytes) -> bytes:
    """A whole response as a stream, for an engine that does not stream although it was asked to."""
    try:
        return sse.event(msgspec.json.format(body, indent=-1)) if body else b""
    except NOT_JSON:
        return b""
