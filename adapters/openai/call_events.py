"""Tool calls in a stream that is forwarded: the bytes as they came while each piece has the form of OpenAI's protocol, and
the calls as `adapters/tool_calls.py` reads them from the first odd piece on."""

from __future__ import annotations

import re
from typing import Any

from hostler.adapters import lenient, sse
from hostler.adapters.canonical import ToolCall
from hostler.adapters.errors import BackendBroken
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.openai.chunks import call_pieces, canonical_finish
from hostler.adapters.openai.fold import objects
from hostler.adapters.openai.schema import OpenAIDelta
from hostler.adapters.tool_calls import NO_ARGUMENTS, ToolCallReader

_KEY = b'"tool_calls"'
_CALLS = re.compile(rb'"tool_calls"\s*:\s*(?!null|\[\s*\]|\s)')
_convert_delta = lenient.decoder(OpenAIDelta)
#: Alternatives with tool calls in one answer, at most.
MAX_CHOICES = 1024
_FIELDS = frozenset({"index", "id", "type", "function", "name", "arguments"})
_ODD_FINISH = "tool_call"
_KINDS = ("function", None)
#: Arguments that are encoded twice, or null.
_ODD_STARTS = ('"', "null")


def has_calls(event: bytes) -> bool:
    """Whether an event may have pieces of tool calls. Nearly all have none, and one search says so."""
    return _KEY in event and _CALLS.search(event) is not None


class CallEvents:
    """Follows the tool calls of a stream's choices. Every event from the first with a piece of a call on passes here.

    An event with `{}` as arguments is held back until the next one shows whether that was only a placeholder.
    """

    __slots__ = ("_choices", "_held", "_held_body")

    def __init__(self) -> None:
        self._choices: dict[int, _ChoiceCalls] = {}
        self._held = b""
        self._held_body: dict[str, Any] = {}

    @property
    def holds(self) -> bool:
        """Whether an event is held back, which belongs before the next one."""
        return bool(self._held)

    def forward(self, event: bytes, data: bytes) -> bytes:
        """The event as it came, or with the calls in order, behind the one that was held back. `data` is its JSON."""
        try:
            body = lenient.decode_exactly(data)
        except NOT_JSON:
            return self._take_held() + event
        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(choices, list):
            return self._take_held() + event
        changed, finished = False, False
        for choice in choices:
            if isinstance(choice, dict):
                changed = self._forward_choice(choice, str(body.get("id", ""))) or changed
                finished = finished or bool(choice.get("finish_reason"))
        forwarded = sse.event(lenient.encode(body)) if changed else event
        before = self._take_held()
        if changed or finished or not any(calls.placeholders for calls in self._choices.values()):
            return before + forwarded
        self._held, self._held_body = forwarded, body
        return before

    def _take_held(self) -> bytes:
        """The event that was held back, without the placeholders in it that have been replaced since."""
        held, self._held = self._held, b""
        replaced = {index: calls.take_replaced() for index, calls in self._choices.items()}
        if not held or not any(replaced.values()):
            return held
        for choice in objects(self._held_body.get("choices")):
            numbers = replaced.get(lenient.count(choice.get("index")) or 0, set())
            for piece in objects(choice["delta"].get("tool_calls")):
                if piece.get("index") in numbers:
                    piece["function"]["arguments"] = ""
        return sse.event(lenient.encode(self._held_body))

    def _forward_choice(self, choice: dict[str, Any], response_id: str) -> bool:
        """Put the calls in this choice in order; returns whether that changes anything."""
        index, delta, finish = lenient.count(choice.get("index")) or 0, choice.get("delta"), choice.get("finish_reason")
        calls = self._choices.get(index)
        raw = delta.get("tool_calls") if isinstance(delta, dict) else None
        if calls is None:
            if not raw:
                return False
            if len(self._choices) == MAX_CHOICES:
                raise BackendBroken(f"The backend sent more than {MAX_CHOICES} alternatives with tool calls.")
            calls = self._choices[index] = _ChoiceCalls()
        pieces = calls.add(raw, is_last=bool(finish))
        if pieces is None:
            if finish != _ODD_FINISH:
                return False
            choice["finish_reason"] = canonical_finish(_ODD_FINISH)
            return True
        delta = choice["delta"] = delta if isinstance(delta, dict) else {}
        delta.pop("tool_calls", None)
        if pieces:
            delta["tool_calls"] = [_piece(piece, response_id) | others for piece, others in pieces]
        if isinstance(finish, str):
            choice["finish_reason"] = canonical_finish(finish)
        return True


class _SentCall:
    """A call that was forwarded as it came. `has_arguments`: some of them have been forwarded, too; `has_placeholder`: so far
    only `{}`, which others may replace."""

    __slots__ = ("has_arguments", "has_placeholder", "id", "name")

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.has_arguments = self.has_placeholder = False

    def accepts_name(self, piece: str) -> bool:
        """Whether this is the rest of the name, which clients add to it, and not the name again."""
        return not self.has_arguments and not piece.startswith(self.name)

    def accepts(self, text: str) -> bool:
        """Whether this is the next piece of the arguments, and not their beginning in another form."""
        if not self.has_arguments and text.lstrip().startswith(_ODD_STARTS):
            return False
        if not self.has_arguments and not self.has_placeholder and text.strip() == NO_ARGUMENTS:
            self.has_placeholder = True
        elif text.strip():
            self.has_arguments = True
        return True


class _ChoiceCalls:
    """The calls of one choice."""

    __slots__ = ("_is_odd", "_reader", "_replaced", "_seen", "_sent", "_touched", "placeholders")

    def __init__(self) -> None:
        self._reader = ToolCallReader(holds_names=False)
        self._sent: list[_SentCall] = []
        self._is_odd = False
        #: The calls for which the last event had `{}` alone.
        self.placeholders: set[int] = set()
        self._seen: set[int] = set()
        #: Those in the event that is being read.
        self._touched: set[int] = set()
        self._replaced: set[int] = set()

    def take_replaced(self) -> set[int]:
        """The calls whose placeholder the last event has replaced."""
        replaced, self._replaced = self._replaced, set()
        return replaced

    def add(self, raw: Any, *, is_last: bool) -> list[tuple[ToolCall, dict[str, Any]]] | None:
        """The canonical pieces for those in an event, each with the other fields that it had; `None` if the event may stay
        as it is."""
        before = self.placeholders
        self._touched.clear()
        self._is_odd = self._is_odd or bool(raw and not self._is_well_formed(raw))
        self._reader.holds_names = self._is_odd  # until then, heads are forwarded as they come
        read = self._read(raw if isinstance(raw, list) else [raw] if raw else [])
        self.placeholders = {n for n in self._touched if self._is_placeholder(n)} - self._seen
        self._seen |= self.placeholders
        self._replaced = before & {call.index for call, _ in read if call.arguments}
        if is_last:
            missing = [
                (call, dict[str, Any]()) for call in self._reader.finish() if not self._has_arguments(call.index)
            ]
            self._is_odd = self._is_odd or bool(missing)
            if not self._is_odd:
                return None
            return read + missing
        if not self._is_odd:
            return None
        return read if raw else None

    def _read(self, pieces: list[Any]) -> list[tuple[ToolCall, dict[str, Any]]]:
        read: list[tuple[ToolCall, dict[str, Any]]] = []
        named: set[int] = set()
        for piece in pieces:
            if isinstance(piece, dict):
                others = {name: value for name, value in piece.items() if name not in _FIELDS}
                delta = _convert_delta(lenient.encode({"tool_calls": [piece]}))
                read += [(call, others) for call in self._reader.read(call_pieces(delta), named=named)]
        return read

    def _has_arguments(self, number: int) -> bool:
        if number >= len(self._sent):
            return False
        call = self._sent[number]
        return call.has_arguments or call.has_placeholder

    def _is_placeholder(self, number: int) -> bool:
        call = self._sent[number]
        return call.has_placeholder and not call.has_arguments

    def _is_well_formed(self, pieces: Any) -> bool:
        """Whether these are the next pieces in the form of OpenAI's protocol; notes them as forwarded."""
        return isinstance(pieces, list) and all(map(self._is_next, pieces))

    def _is_next(self, piece: Any) -> bool:
        if isinstance(piece, dict) and isinstance(piece.get("custom"), dict):
            return self._is_next_custom(piece)
        function = piece.get("function") if isinstance(piece, dict) else None
        if not isinstance(function, dict) or piece.get("type") not in _KINDS:
            return False
        index, call_id, name = piece.get("index"), piece.get("id"), function.get("name")
        text = function.get("arguments", "")
        if type(index) is not int or not isinstance(text, str):
            return False
        if index == len(self._sent) and isinstance(call_id, str) and call_id and isinstance(name, str) and name:
            call = _SentCall(call_id, name)
            if not call.accepts(text):
                return False
            self._touched.add(index)
            self._sent.append(call)
            return True
        if not 0 <= index < len(self._sent):
            return False
        call = self._sent[index]
        self._touched.add(index)
        if name and (not isinstance(name, str) or not call.accepts_name(name)):
            return False
        return call_id in (None, "", call.id) and call.accepts(text)

    def _is_next_custom(self, piece: dict[str, Any]) -> bool:
        """The same for a piece of a custom tool's call: only servers that know them send some."""
        index = piece.get("index")
        if type(index) is not int or not 0 <= index <= len(self._sent):
            return False
        if index == len(self._sent):
            call = _SentCall(str(piece.get("id") or ""), "")
            call.has_arguments = True  # of another kind: nothing is missing at the end
            self._sent.append(call)
        return True


def whole_calls(raw: Any, response_id: str) -> list[dict[str, Any]]:
    """The calls of a whole message, of any form, as the pieces of a stream. Raises `BackendBroken` for what is none."""
    calls: list[dict[str, Any]] = []
    for each in objects(raw if isinstance(raw, list) else [raw]):
        if isinstance(each.get("custom"), dict):
            calls.append({**each, "index": len(calls)})
            continue
        delta = _convert_delta(lenient.encode({"tool_calls": [each]}))
        others = {name: value for name, value in each.items() if name not in _FIELDS}
        read = ToolCallReader().read(call_pieces(delta), whole=True)
        calls += [_piece(call, response_id) | others | {"index": len(calls)} for call in read]
    return calls


def _piece(call: ToolCall, response_id: str) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id or f"call_{response_id.rpartition('-')[2]}_{call.index}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
