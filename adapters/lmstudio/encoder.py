"""Responses in LM Studio's protocol: its own chat, and OpenAI's forms with LM Studio's statistics."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.base import Encoder, Timing
from hostler.adapters.canonical import ChatRequest, Chunk, Progress, ResponseHead, Usage
from hostler.adapters.errors import GatewayError
from hostler.adapters.lmstudio.errors import error_body
from hostler.adapters.model_list import ModelCard
from hostler.adapters.progress import ProgressLines
from hostler.profiles.schema import ModelFacts

_encode = msgspec.json.encode
_DONE = b"data: [DONE]\n\n"
_NO_FACTS = ModelFacts()
_STOP_REASONS = {"stop": "eosFound", "length": "maxPredictedTokensReached", "tool_calls": "toolCalls"}
_LOADING_PHASES = frozenset({"starting", "loading", "restoring"})


class Stats:
    """What LM Studio reports about a response. The engine's own times count; without them, the gateway's."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.finish: str | None = None
        self.stop: str | None = None
        self.timing = Timing()

    def update(self, chunk: Chunk) -> None:
        """Take over usage and finish of a chunk."""
        self.usage = chunk.usage or self.usage
        self.finish = chunk.finish or self.finish
        self.stop = chunk.stop or self.stop

    @property
    def first_token_s(self) -> float:
        return round((self.usage.prompt_ms or 0.0) / 1000, 3)

    @property
    def generation_s(self) -> float:
        """Seconds from the first token on."""
        if self.usage.completion_ms is not None:
            return round(self.usage.completion_ms / 1000, 3)
        timing = self.timing
        return round(max(timing.total_s - timing.queue_s - timing.switch_s - self.first_token_s, 0.0), 3)

    @property
    def tokens_per_s(self) -> float:
        seconds = self.generation_s
        return round(self.usage.completion_tokens / seconds, 3) if seconds else 0.0


class StatsEncoder(Encoder):
    """OpenAI's response with `stats`, `model_info` and `runtime`: in the whole, or in a last event of the stream."""

    def __init__(self, inner: Encoder, *, version: str) -> None:
        self._inner = inner
        self._version = version
        self._card = ModelCard(name="")
        self._stats = Stats()
        self._held: list[bytes] = []
        self._done = False
        self.streaming = inner.streaming
        self.media_type = inner.media_type

    def set_progress(self, progress: str) -> None:
        self._inner.set_progress(progress)

    def bind_model(self, card: ModelCard) -> None:
        self._card = card

    def set_timing(self, timing: Timing) -> None:
        self._stats.timing = timing

    def start(self, head: ResponseHead) -> None:
        self._inner.start(head)
        self.media_type = self._inner.media_type
        timing, self._stats = self._stats.timing, Stats()
        self._stats.timing = timing
        self._held = []
        self._done = False

    def encode(self, chunk: Chunk) -> bytes:
        """The inner encoder's bytes; those of a whole response are held back."""
        self._stats.update(chunk)
        return self._hold(self._inner.encode(chunk))

    def finish(self) -> bytes:
        last = self._hold(self._inner.finish())
        fields = self._fields()
        if self.streaming:
            if not self._done:
                return last
            return last + sse.event(_encode({"object": "chat.completion.chunk", "choices": [], **fields})) + _DONE
        body = b"".join(self._held)
        stripped = body.rstrip()
        if stripped.startswith(b"{") and stripped.endswith(b"}") and stripped != b"{}":
            body = stripped[:-1] + b"," + _encode(fields)[1:]
        self.length = len(body)
        return body

    def heartbeat(self, progress: Progress) -> bytes:
        return self._inner.heartbeat(progress)

    def error(self, error: GatewayError) -> bytes:
        return self._inner.error(error)

    def _hold(self, data: bytes) -> bytes:
        """Hold back a whole response, and the end mark of a stream."""
        self.media_type = self._inner.media_type
        if not self.streaming:
            self._held.append(data)
            return b""
        if data.endswith(_DONE):
            self._done = True
            return data[: -len(_DONE)]
        return data

    def _fields(self) -> dict[str, Any]:
        stats, card = self._stats, self._card
        facts = card.facts or _NO_FACTS
        reason = "stopStringFound" if stats.stop else _STOP_REASONS.get(stats.finish or "stop", "eosFound")
        info: dict[str, Any] = {"arch": facts.architecture or "llama", "quant": facts.quantization, "format": "gguf"}
        return {
            "stats": {
                "tokens_per_second": stats.tokens_per_s,
                "time_to_first_token": stats.first_token_s,
                "generation_time": stats.generation_s,
                "stop_reason": reason,
            },
            "model_info": info | ({"context_length": card.context} if card.context else {}),
            "runtime": {"name": "hostler", "version": self._version, "supported_formats": ["gguf"]},
        }


class LMStudioChatEncoder(Encoder):
    """A response of LM Studio's own chat: named events, or one object."""

    def __init__(self, request: ChatRequest, *, progress: str) -> None:
        self._model = request.model or ""
        self._progress = progress
        self._lines = ProgressLines()
        self._opened = False
        self._load_s: float | None = None
        self._reads = False
        self._stats = Stats()
        self.streaming = request.output.stream
        self.media_type = sse.MEDIA_TYPE if self.streaming else "application/json"
        self.start(ResponseHead(media_type=sse.MEDIA_TYPE))

    def set_progress(self, progress: str) -> None:
        self._progress = progress

    def set_timing(self, timing: Timing) -> None:
        self._stats.timing = timing

    def start(self, head: ResponseHead) -> None:
        self.length = None
        self._items: list[tuple[str, list[str]]] = []
        self._stats = Stats()

    def encode(self, chunk: Chunk) -> bytes:
        self._stats.update(chunk)
        if chunk.index:
            return b""
        events = self._before_content() if chunk.reasoning or chunk.text else []
        for kind, text in (("reasoning", chunk.reasoning), ("message", chunk.text)):
            if text:
                events += self._add(kind, text)
        return self._write(events)

    def finish(self) -> bytes:
        result = self._result()
        if not self.streaming:
            body = _encode(result)
            self.length = len(body)
            return body
        return self._write([*self._before_content(), *self._close_item(), {"type": "chat.end", "result": result}])

    def heartbeat(self, progress: Progress) -> bytes:
        """The progress of loading and of reading the prompt as the protocol's own events; everything else as comments."""
        if not self.streaming or self._progress == "off":
            return b""
        events: list[dict[str, Any]] = []
        if self._progress != "comments" and progress.phase in _LOADING_PHASES:
            events = self._loading(progress)
        elif self._progress != "comments" and progress.phase == "reading the prompt":
            events = self._reading(progress)
        return self._write(events) if events else sse.comment(self._lines.next(progress))

    def _loading(self, progress: Progress) -> list[dict[str, Any]]:
        instance = {"model_instance_id": self._model}
        events = self._open()
        if self._load_s is None:
            events += [*self._end_reading(), {"type": "model_load.start", **instance}]
        self._load_s = progress.waited_s
        if progress.percent is not None:
            events.append({"type": "model_load.progress", **instance, "progress": round(progress.percent / 100, 3)})
        return events

    def _reading(self, progress: Progress) -> list[dict[str, Any]]:
        events = [*self._open(), *self._end_load()]
        if not self._reads:
            self._reads = True
            events.append({"type": "prompt_processing.start"})
        if progress.percent is not None:
            events.append({"type": "prompt_processing.progress", "progress": round(progress.percent / 100, 3)})
        return events

    def error(self, error: GatewayError) -> bytes:
        """The error, and the output so far."""
        event = {"type": "error", "error": error_body(error)}
        return self._write([*self._open(), *self._close_item(), event, {"type": "chat.end", "result": self._result()}])

    def _write(self, events: list[dict[str, Any]]) -> bytes:
        return b"".join(sse.event(_encode(event), event["type"]) for event in events) if self.streaming else b""

    def _open(self) -> list[dict[str, Any]]:
        if self._opened:
            return []
        self._opened = True
        return [{"type": "chat.start", "model_instance_id": self._model}]

    def _before_content(self) -> list[dict[str, Any]]:
        """The events that must precede the first token."""
        return [*self._open(), *self._end_load(), *self._end_reading()]

    def _end_load(self) -> list[dict[str, Any]]:
        if self._load_s is None:
            return []
        seconds, self._load_s = round(self._load_s, 3), None
        return [{"type": "model_load.end", "model_instance_id": self._model, "load_time_seconds": seconds}]

    def _end_reading(self) -> list[dict[str, Any]]:
        ended, self._reads = self._reads, False
        return [{"type": "prompt_processing.end"}] if ended else []

    def _add(self, kind: str, text: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if not self._items or self._items[-1][0] != kind:
            events += self._close_item()
            self._items.append((kind, []))
            events.append({"type": f"{kind}.start"})
        self._items[-1][1].append(text)
        events.append({"type": f"{kind}.delta", "content": text})
        return events

    def _close_item(self) -> list[dict[str, Any]]:
        return [{"type": f"{self._items[-1][0]}.end"}] if self._items else []

    def _result(self) -> dict[str, Any]:
        stats = self._stats
        return {
            "model_instance_id": self._model,
            "output": [{"type": kind, "content": "".join(pieces)} for kind, pieces in self._items],
            "stats": {
                "input_tokens": stats.usage.prompt_tokens,
                "total_output_tokens": stats.usage.completion_tokens,
                "reasoning_output_tokens": stats.usage.reasoning_tokens,
                "tokens_per_second": stats.tokens_per_s,
                "time_to_first_token_seconds": stats.first_token_s,
            },
        }


class UnloadEncoder(Encoder):
    """The response of `POST /api/v1/models/unload`."""

    def __init__(self, instance_id: str) -> None:
        self._instance_id = instance_id

    def encode(self, chunk: Chunk) -> bytes:
        return b""

    def finish(self) -> bytes:
        return _encode({"instance_id": self._instance_id})
