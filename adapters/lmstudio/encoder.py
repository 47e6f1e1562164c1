"""Answers as LM Studio's clients read them: its own chat, and OpenAI's forms with LM Studio's figures in them."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Encoder, Timing
from hostler.adapters.errors import GatewayError
from hostler.adapters.lmstudio.errors import error_body
from hostler.adapters.model_list import ModelCard
from hostler.adapters.progress import PREFIX, progress_line
from hostler.adapters.types import ChatRequest, Chunk, Progress, ResponseHead, Usage
from hostler.profiles.schema import ModelFacts

_encode = msgspec.json.encode
_DONE = b"data: [DONE]\n\n"
_NO_FACTS = ModelFacts()
_STOPS = {"stop": "eosFound", "length": "maxPredictedTokensReached", "tool_calls": "toolCalls"}
_LOADS = frozenset({"starting", "loading", "restoring"})


class Figures:
    """What is known of how an answer came about. The engine's own times count; where it tells none, the gateway's."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.finish: str | None = None
        self.stop: str | None = None
        self.timing = Timing()

    def notice(self, chunk: Chunk) -> None:
        """Take in what a chunk tells."""
        self.usage = chunk.usage or self.usage
        self.finish = chunk.finish or self.finish
        self.stop = chunk.stop or self.stop

    @property
    def first_s(self) -> float:
        """Seconds until the first token."""
        return round((self.usage.prompt_ms or 0.0) / 1000, 3)

    @property
    def generation_s(self) -> float:
        """Seconds from then on."""
        if self.usage.completion_ms is not None:
            return round(self.usage.completion_ms / 1000, 3)
        timing = self.timing
        return round(max(timing.total_s - timing.queue_s - timing.switch_s - self.first_s, 0.0), 3)

    @property
    def tokens_per_s(self) -> float:
        """How many tokens a second there were."""
        seconds = self.generation_s
        return round(self.usage.completion_tokens / seconds, 3) if seconds else 0.0


class FiguresEncoder(Encoder):
    """An answer of OpenAI's with `stats`, `model_info` and `runtime` in it: in the whole, or in a last event of a stream."""

    def __init__(self, inner: Encoder, *, version: str) -> None:
        self._inner = inner
        self.streaming = inner.streaming
        self.media_type = inner.media_type
        self._version = version
        self._card = ModelCard(name="")
        self._figures = Figures()
        self._held: list[bytes] = []
        self._ended = False
        self.length = None

    def bind_model(self, card: ModelCard) -> None:
        """The model that answers."""
        self._card = card

    def set_timing(self, timing: Timing) -> None:
        """How long it took."""
        self._figures.timing = timing

    def start(self, head: ResponseHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        self._inner.start(head)
        self.media_type = self._inner.media_type
        timing, self._figures = self._figures.timing, Figures()
        self._figures.timing = timing
        self._held = []
        self._ended = False

    def encode(self, chunk: Chunk) -> bytes:
        """The bytes for the client that this chunk gives; a whole answer is held back for what belongs into it."""
        self._figures.notice(chunk)
        data = self._inner.encode(chunk)
        self.media_type = self._inner.media_type
        return self._told(data)

    def finish(self) -> bytes:
        """What ends the answer, with the figures."""
        last = self._told(self._inner.finish())
        self.media_type = self._inner.media_type
        told = self._body()
        if self.streaming:
            if not self._ended:
                return last
            return last + sse.event(_encode({"object": "chat.completion.chunk", "choices": [], **told})) + _DONE
        body = b"".join(self._held)
        whole = body.rstrip()
        if whole.startswith(b"{") and whole.endswith(b"}") and whole != b"{}":
            body = whole[:-1] + b"," + _encode(told)[1:]
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        """A sign of life, as OpenAI's clients take it."""
        return self._inner.heartbeat(progress)

    def error(self, error: GatewayError) -> bytes:
        """The error inside the stream."""
        return self._inner.error(error)

    def _told(self, data: bytes) -> bytes:
        if not self.streaming:
            self._held.append(data)
            return b""
        if data.endswith(_DONE):
            self._ended = True
            return data[: -len(_DONE)]
        return data

    def _body(self) -> dict[str, Any]:
        figures, card = self._figures, self._card
        facts = card.facts or _NO_FACTS
        reason = "stopStringFound" if figures.stop else _STOPS.get(figures.finish or "stop", "eosFound")
        info: dict[str, Any] = {"arch": facts.architecture or "llama", "quant": facts.quantization, "format": "gguf"}
        return {
            "stats": {
                "tokens_per_second": figures.tokens_per_s,
                "time_to_first_token": figures.first_s,
                "generation_time": figures.generation_s,
                "stop_reason": reason,
            },
            "model_info": info | ({"context_length": card.context} if card.context else {}),
            "runtime": {"name": "hostler", "version": self._version, "supported_formats": ["gguf"]},
        }


class ChatEncoder(Encoder):
    """An answer of LM Studio's own chat: named events, or one object."""

    def __init__(self, request: ChatRequest, *, progress: str) -> None:
        self._model = request.model or ""
        self.streaming = request.output.stream
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"
        self._progress = progress
        self._opened = False
        self._loading: float | None = None
        self._figures = Figures()
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def set_timing(self, timing: Timing) -> None:
        """How long it took."""
        self._figures.timing = timing

    def start(self, head: ResponseHead) -> None:
        """A backend answers: whatever an earlier attempt left is forgotten."""
        self._items: list[tuple[str, list[str]]] = []
        self._figures = Figures()
        self.length = None

    def encode(self, chunk: Chunk) -> bytes:
        """The events that this chunk becomes; nothing yet of a whole answer."""
        self._figures.notice(chunk)
        if chunk.index:
            return b""
        events = self._begun() if chunk.reasoning or chunk.text else []
        for kind, words in (("reasoning", chunk.reasoning), ("message", chunk.text)):
            if words:
                events += self._said(kind, words)
        return self._written(events)

    def finish(self) -> bytes:
        """What ends the answer: all of it, once more."""
        result = self._result()
        if not self.streaming:
            body = _encode(result)
            self.length = len(body)
            return body
        return self._written([*self._begun(), *self._closed(), {"type": "chat.end", "result": result}])

    def heartbeat(self, progress: Progress) -> bytes:
        """How far a load is, in the protocol's own events; everything else in comments."""
        if not self.streaming or self._progress == "off":
            return b""
        if self._progress == "comments" or progress.phase not in _LOADS:
            return sse.comment(PREFIX + progress_line(progress))
        events = self._open()
        instance = {"model_instance_id": self._model}
        if self._loading is None:
            events.append({"type": "model_load.start", **instance})
        self._loading = progress.waited_s
        if progress.percent is not None:
            events.append({"type": "model_load.progress", **instance, "progress": round(progress.percent / 100, 3)})
        return self._written(events)

    def error(self, error: GatewayError) -> bytes:
        """The error inside the stream, and what was said until then."""
        told = {"type": "error", "error": error_body(error)}
        return self._written([*self._open(), *self._closed(), told, {"type": "chat.end", "result": self._result()}])

    def _written(self, events: list[dict[str, Any]]) -> bytes:
        return b"".join(sse.event(_encode(event), event["type"]) for event in events) if self.streaming else b""

    def _open(self) -> list[dict[str, Any]]:
        if self._opened:
            return []
        self._opened = True
        return [{"type": "chat.start", "model_instance_id": self._model}]

    def _begun(self) -> list[dict[str, Any]]:
        """What comes before the first word."""
        events = self._open()
        if self._loading is not None:
            told = {"model_instance_id": self._model, "load_time_seconds": round(self._loading, 3)}
            events.append({"type": "model_load.end", **told})
            self._loading = None
        return events

    def _said(self, kind: str, words: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if not self._items or self._items[-1][0] != kind:
            events += self._closed()
            self._items.append((kind, []))
            events.append({"type": f"{kind}.start"})
        self._items[-1][1].append(words)
        events.append({"type": f"{kind}.delta", "content": words})
        return events

    def _closed(self) -> list[dict[str, Any]]:
        return [{"type": f"{self._items[-1][0]}.end"}] if self._items else []

    def _result(self) -> dict[str, Any]:
        figures = self._figures
        return {
            "model_instance_id": self._model,
            "output": [{"type": kind, "content": "".join(words)} for kind, words in self._items],
            "stats": {
                "input_tokens": figures.usage.prompt_tokens,
                "total_output_tokens": figures.usage.completion_tokens,
                "reasoning_output_tokens": figures.usage.reasoning_tokens,
                "tokens_per_second": figures.tokens_per_s,
                "time_to_first_token_seconds": figures.first_s,
            },
        }
