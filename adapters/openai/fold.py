"""Folds the events of a stream into the whole response, without losing any field that a server puts into them."""

from __future__ import annotations

from typing import Any

from hostler.adapters import lenient, sse
from hostler.adapters.errors import invalid_event
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.text_run import TextRun
from hostler.adapters.tool_calls import NO_ARGUMENTS, CallPiece, CallTable, OpenCall

_OBJECTS = {"chat.completion.chunk": "chat.completion"}
# The same in every event: the first one counts.
_ONCE = frozenset({"id", "role", "type", "object", "format", "model", "created", "index"})
# Strings that come in pieces; of every other field the last value counts.
_TEXTS = frozenset(
    {
        *("content", "reasoning_content", "reasoning", "reasoning_text", "thinking", "refusal", "text", "tool_plan"),
        *("arguments", "input", "data", "transcript"),
    }
)
# Lists that come in pieces, and objects that do, or that hold such lists or strings.
_LISTS = frozenset(
    {
        *("content", "refusal", "reasoning_details", "thinking_blocks", "annotations", "images", "citations"),
        *("tokens", "token_logprobs", "top_logprobs", "text_offset"),
    }
)
_OBJECTS_IN_PIECES = frozenset({"function_call", "function", "custom", "audio", "logprobs"})
# The order of llama-server's whole responses; in its streams `id` has another place.
_LLAMA_ORDER = ("choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings")
_CALL_ORDER = ("type", "function", "custom", "id")
# Fields of an event that contains the whole response, but not of the response.
_EVENT_ONLY = frozenset({"type", "sequence_number", "response"})
# Fields that only streams have.
_STREAM_ONLY = frozenset({"prompt_progress", "x_hostler"})


class StreamFold:
    """Collects events into the response that the server would have sent as a whole."""

    __slots__ = ("_choices", "_response", "_run", "_text", "_top")

    def __init__(self) -> None:
        self._run = TextRun()
        self._text: _GrowingText | None = None
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._response: dict[str, Any] | None = None

    def add_events(self, block: bytes) -> None:
        """Add all events of a block of whole events. Raises `BackendBroken` for an invalid one."""
        at = 0
        while at < len(block):
            if self._text is not None:
                texts, at = self._run.texts(block, at)
                if texts:
                    self._text += texts
                    continue
            raw = sse.first(block, at)
            at += len(raw)
            _, data = sse.parse(raw)
            if data is not None and data != b"[DONE]":
                try:
                    event = lenient.decode_exactly(data)
                except NOT_JSON:
                    raise invalid_event() from None
                if isinstance(event, dict):
                    self.add(event)
                    self._learn(raw, event)

    def add(self, event: dict[str, Any]) -> None:
        """Add one event. Raises `BackendBroken` for an invalid one."""
        if isinstance(event.get("response"), dict):
            self._response = event["response"] | {n: value for n, value in event.items() if n not in _EVENT_ONLY}
            return
        # llama-server reports usage per choice and puts that of the first one into a whole response.
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

    def _learn(self, raw: bytes, event: dict[str, Any]) -> None:
        """Expect more events like this one, if nothing but its piece of text adds to the response."""
        self._text = None
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
        if self._run.learn(raw):
            text = self._choices[_index(choice)]["message"].get(self._run.field)
            self._text = text if isinstance(text, _GrowingText) else None

    def result(self) -> bytes:
        """The whole response as JSON."""
        if self._response is not None:
            return lenient.encode(self._response)
        top = dict(self._top)
        top["choices"] = [_finished(self._choices[index]) for index in sorted(self._choices)]
        is_llamas = next(iter(top)) == "choices"
        if is_llamas:
            top = {name: top[name] for name in _LLAMA_ORDER if name in top} | top
        for choice in top["choices"]:
            if isinstance(choice.get("message"), dict):
                choice["message"] = _llama_message(choice["message"]) if is_llamas else _message(choice["message"])
        return lenient.encode(top)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = _index(choice)
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
    """A list of objects, empty for null. Raises `BackendBroken` for anything else."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise invalid_event()
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid_event()
    return value


def _index(choice: dict[str, Any]) -> int:
    index = lenient.count(choice.get("index") or 0)
    if index is None:
        raise invalid_event()
    return index


def _merge(into: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add the next piece of a message, or of an object within one. Texts are collected in `_GrowingText`."""
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
        elif name in _LISTS and isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        elif name in _OBJECTS_IN_PIECES and isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif name not in _ONCE:
            into[name] = value


def _start(name: str, value: Any) -> Any:
    if isinstance(value, str) and name in _TEXTS:
        return _GrowingText([value])
    if isinstance(value, dict) and name in _OBJECTS_IN_PIECES:
        started: dict[str, Any] = {}
        _merge(started, value)
        return started
    return list(value) if isinstance(value, list) else value


class _GrowingText(list[str]):
    """A string in pieces, joined once at the end, so that long responses stay cheap."""


class _GrowingCalls:
    """Tool calls in pieces: `CallTable` decides which one each piece belongs to."""

    __slots__ = ("_fields", "_table")

    def __init__(self) -> None:
        self._table = CallTable()
        self._fields: list[dict[str, Any]] = []

    def add(self, pieces: Any) -> None:
        named: set[int] = set()
        for piece in objects([pieces] if isinstance(pieces, dict) else pieces):
            if "function" not in piece and "name" in piece:
                piece["function"] = {name: piece.pop(name) for name in ("name", "arguments") if name in piece}
            function = _object(piece.get("function") or {})
            name, arguments = function.get("name"), function.get("arguments")
            call, _ = self._table.add(CallPiece(piece.get("index"), piece.get("id"), name, arguments), named=named)
            if call.number == len(self._fields):
                self._fields.append({})
            fields = self._fields[call.number]
            _merge(fields, {name: value for name, value in piece.items() if name not in ("index", "function")})
            if "function" in piece:
                known = fields.setdefault("function", {})
                known |= {name: value for name, value in function.items() if name not in known or value is not None}

    def result(self) -> list[dict[str, Any]]:
        """The calls, with arguments as JSON text whatever form their pieces had."""
        return [_call(call, fields) for call, fields in zip(self._table.calls, self._fields, strict=True)]


def _call(call: OpenCall, fields: dict[str, Any]) -> dict[str, Any]:
    function = fields.get("function")
    if not isinstance(function, dict):
        return {name: _finished(value) for name, value in fields.items()}  # of a kind of its own
    if call.name:
        function["name"] = call.name
    function["arguments"] = "".join(call.arguments) or NO_ARGUMENTS
    return {name: _finished(value) for name, value in fields.items()}


def _finished(value: Any) -> Any:
    if isinstance(value, _GrowingText):
        return "".join(value)
    if isinstance(value, _GrowingCalls):
        return value.result()
    if isinstance(value, dict):
        return {name: _finished(inner) for name, inner in value.items()}
    return value


def _message(folded: dict[str, Any]) -> dict[str, Any]:
    """A message with what every whole one has, and a stream may leave out."""
    return folded if "role" in folded and "content" in folded else {"role": "assistant", "content": None, **folded}


def _llama_message(folded: dict[str, Any]) -> dict[str, Any]:
    """A message as in llama-server's whole responses. Its streams have null for an empty content, put the id of a call
    first, and leave out the role if the first token is half a character."""
    message = {"role": "assistant", "content": "", **folded}
    if message["content"] is None:
        message["content"] = ""
    if message.get("tool_calls"):
        message["tool_calls"] = [
            {name: call[name] for name in _CALL_ORDER if name in call} | call for call in objects(message["tool_calls"])
        ]
    return message
