"""A native completion's stream folded into the whole answer that llama-server itself would have given."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters import framing
from hostler.adapters.document import NOT_JSON
from hostler.adapters.errors import BackendBroken

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
        for _, data in framing.events(block):
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
