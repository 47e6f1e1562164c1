"""A whole answer out of a stream's events, without losing a field that any server puts into them."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hostler.adapters import sse
from hostler.adapters.errors import invalid_event
from hostler.adapters.json_body import NOT_JSON

# Numbers with fractions stay as they are written: `-1e-07` is the same number as `-1e-7`, but not the same answer.
_decode = msgspec.json.Decoder(float_hook=lambda digits: msgspec.Raw(digits.encode())).decode
_decode_text = msgspec.json.Decoder(str).decode

# Where an event that is nothing but the next piece of a message holds it.
_PIECE = re.compile(rb'"delta":\s*\{\s*"(content|reasoning_content)":\s*("(?:[^"\\]|\\.)*")')

_OBJECTS = {"chat.completion.chunk": "chat.completion"}
# Said once, or said again the same in each event: the first one counts. Every other string is the next piece.
_ONCE = frozenset({"id", "role", "type", "object", "format", "model", "created", "index"})
# llama-server's own order in a whole answer; in its streams `id` stands elsewhere.
_LLAMA_ORDER = ("choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings")
_CALL_ORDER = ("type", "function", "id")
# What only a stream has.
_STREAM_ONLY = frozenset({"prompt_progress", "x_hostler"})


class StreamFold:
    """Collects events and gives the whole answer in the form that the server itself would have sent."""

    __slots__ = ("_after", "_before", "_choices", "_response", "_top", "_words")

    def __init__(self) -> None:
        self._before = self._after = b""
        self._words: _GrowingText | None = None
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._response: dict[str, Any] | None = None

    def add_events(self, block: bytes) -> None:
        """Takes in all events of a block of whole events. Raises `BackendBroken` for what cannot be one."""
        for whole in sse.split(block):
            if self._is_next_piece(whole):
                continue
            _, data = sse.parse(whole)
            if data is not None and data != b"[DONE]":
                try:
                    event = _decode(data)
                except NOT_JSON:
                    raise invalid_event() from None
                if isinstance(event, dict):
                    self.add(event)
                    self._learn(whole, event)

    def add(self, event: dict[str, Any]) -> None:
        """Takes in one event. Raises `BackendBroken` if its parts are not what the protocol allows."""
        if isinstance(event.get("response"), dict):
            self._response = {**event["response"], **_timings(event)}
            return
        # llama-server reports counts per choice and puts those of the first one into a whole answer.
        choices = objects(event.get("choices"))
        later = any(choice.get("index") for choice in choices)
        for name, value in event.items():
            if later and name in ("usage", "timings") and self._top.get(name) is not None:
                continue
            if name == "choices":
                self._top.setdefault("choices", None)
                for choice in choices:
                    self._add_choice(choice)
            elif name in _STREAM_ONLY:
                continue
            elif name == "object":
                self._top.setdefault(name, _OBJECTS.get(value, value) if isinstance(value, str) else value)
            elif name in _ONCE:
                self._top.setdefault(name, value)
            elif value is not None or name not in self._top:
                self._top[name] = value

    def _is_next_piece(self, event: bytes) -> bool:
        """Take the event in without decoding it if it is the one before, byte for byte, but for the piece of text."""
        before, after = self._before, self._after
        if (
            self._words is None
            or not event.startswith(before)
            or not event.endswith(after)
            or len(event) < len(before) + len(after)
        ):
            return False
        try:
            self._words.append(_decode_text(event[len(before) : len(event) - len(after)]))
        except NOT_JSON:
            return False
        return True

    def _learn(self, whole: bytes, event: dict[str, Any]) -> None:
        """Remember what stands around the piece, if nothing else in such an event adds to the answer."""
        self._words = None
        choices = event.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or len(self._choices) != 1:
            return
        choice = choices[0]
        delta = choice.get("delta")
        if (
            not isinstance(delta, dict)
            or len(delta) != 1
            or any(choice.get(name) for name in choice if name != "delta")
        ):
            return
        match = _PIECE.search(whole)
        if match is None or len(_PIECE.findall(whole)) != 1:
            return
        words = self._choices[choice.get("index") or 0]["message"].get(match[1].decode())
        if isinstance(words, _GrowingText):
            self._before, self._after, self._words = whole[: match.start(2)], whole[match.end(2) :], words

    def result(self) -> bytes:
        """The whole answer as JSON."""
        if self._response is not None:
            return msgspec.json.encode(self._response)
        top = dict(self._top)
        top["choices"] = [_finished(self._choices[index]) for index in sorted(self._choices)]
        if next(iter(top)) == "choices":
            top = {name: top[name] for name in _LLAMA_ORDER if name in top} | top
            for choice in top["choices"]:
                if isinstance(choice.get("message"), dict):
                    choice["message"] = _message(choice["message"])
        return msgspec.json.encode(top)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = _number(choice.get("index") or 0)
        folded = self._choices.setdefault(index, {})
        for name, value in choice.items():
            if name == "delta":
                _merge(_object(folded.setdefault("message", {})), _object(value or {}))
            elif name == "logprobs":
                if isinstance(value, dict):
                    if not isinstance(folded.get(name), dict):
                        folded[name] = {}
                    _merge(folded[name], value)
                else:
                    folded.setdefault(name, value)
            elif name == "text":
                _merge(folded, {"text": value})
            elif value is not None or name not in folded:
                folded[name] = value


def objects(value: Any) -> list[dict[str, Any]]:
    """The value, which is a list of objects; empty for null. Raises `BackendBroken` if it is not."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise invalid_event()
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid_event()
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise invalid_event()
    return value


def _merge(into: dict[str, Any], piece: dict[str, Any]) -> None:
    """Adds the next piece of a message (or of an object within one). Strings are collected in `_GrowingText`."""
    for name, value in piece.items():
        known = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif name == "tool_calls":
            if not isinstance(known, _GrowingCalls):
                known = into[name] = _GrowingCalls()
            known.add(value)
        elif known is None:
            into[name] = _start(name, value)
        elif isinstance(known, _GrowingText) and isinstance(value, str):
            known.append(value)
        elif isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        elif isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif name not in _ONCE:
            into[name] = value


def _start(name: str, value: Any) -> Any:
    if isinstance(value, str) and name not in _ONCE:
        return _GrowingText([value])
    if isinstance(value, dict):
        begun: dict[str, Any] = {}
        _merge(begun, value)
        return begun
    return list(value) if isinstance(value, list) else value


class _GrowingText(list[str]):
    """A string that is still growing: joined once at the end, so that long answers stay cheap."""


class _GrowingCalls:
    """Tool calls that are still growing, by their number."""

    __slots__ = ("by_index",)

    def __init__(self) -> None:
        self.by_index: dict[int, dict[str, Any]] = {}

    def add(self, pieces: Any) -> None:
        for place, piece in enumerate(objects(pieces)):
            index = piece.get("index")
            call = self.by_index.setdefault(place if index is None else _number(index), {})
            _merge(call, {name: value for name, value in piece.items() if name != "index"})


def _finished(value: Any) -> Any:
    if isinstance(value, _GrowingText):
        return "".join(value)
    if isinstance(value, _GrowingCalls):
        return [_finished(value.by_index[index]) for index in sorted(value.by_index)]
    if isinstance(value, dict):
        return {name: _finished(inner) for name, inner in value.items()}
    return value


def _message(said: dict[str, Any]) -> dict[str, Any]:
    """A message as llama-server tells it whole. Its streams say null where there are no words, begin calls with the id,
    and leave out the role if the first token is but half a letter."""
    message = {"role": "assistant", "content": "", **said}
    if message["content"] is None:
        message["content"] = ""
    if message.get("tool_calls"):
        message["tool_calls"] = [
            {name: call[name] for name in _CALL_ORDER if name in call} | call for call in objects(message["tool_calls"])
        ]
    return message


def _timings(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name == "timings"}
