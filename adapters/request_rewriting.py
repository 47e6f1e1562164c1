"""Applies the operator's changes to a request that is ready to be sent; every other byte stays as it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from hostler.adapters.base import WireRequest
from hostler.adapters.form_rewriting import MEDIA_TYPE, rewrite_form
from hostler.adapters.json_body import NOT_JSON, patch
from hostler.adapters.json_body import members as members_of
from hostler.profiles.request_rules import RequestChanges

#: The names of the limit of generated tokens in all protocols.
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "options.num_predict")


class RequestForm(msgspec.Struct, frozen=True):
    """Where a kind of request has its system prompt, and what it calls the limit of generated tokens. A request that
    generates nothing has neither."""

    system: str = ""
    limit: str = ""

    def takes(self, name: str) -> bool:
        """Whether a member may be added that the client has not given: one that is about generating only where something is
        generated, and one about vectors or rankings only where nothing is."""
        names = _NOT_GENERATING if self.limit else _GENERATING
        return name.partition(".")[0] not in names


#: Members that are about generating text, in any protocol; others stand in requests of all kinds.
_GENERATING = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "stop_sequences", "n", "logprobs"),
        *(
            "frequency_penalty",
            "presence_penalty",
            "repeat_penalty",
            "repetition_penalty",
            "logit_bias",
            "top_logprobs",
        ),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "ignore_eos", "mirostat", "grammar"),
        *("tools", "tool_choice", "parallel_tool_calls", "thinking", "think", "reasoning", "reasoning_effort", "text"),
        *("chat_template_kwargs", "reasoning_format", "json_schema", "format", "stream_options", "cache_prompt"),
        *("verbosity", "samplers", "dry_multiplier", "xtc_probability", "thinking_budget_tokens", "output_config"),
    }
)
_NOT_GENERATING = frozenset({"dimensions", "encoding_format", "top_n", "return_documents", "input_type"})
_PLAIN = RequestForm()

#: The forms of chats and completions, by the end of the path they are sent to.
_FORMS = {
    "/chat/completions": RequestForm("messages", "max_tokens"),
    "/v1/messages": RequestForm("system", "max_tokens"),
    "/responses": RequestForm("instructions", "max_output_tokens"),
    "/api/chat": RequestForm("messages", "options.num_predict"),
    "/api/generate": RequestForm("system", "options.num_predict"),
    "/completions": RequestForm("", "max_tokens"),
    "/completion": RequestForm("", "n_predict"),
    "/infill": RequestForm("", "n_predict"),
}

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


def rewrite(request: WireRequest, changes: Iterable[RequestChanges]) -> WireRequest:
    """The request with these changes, one after the other; the same object if nothing changes."""
    form = _form(request.path)
    if request.content_type.lower().startswith(MEDIA_TYPE):
        return rewrite_form(request, changes, form.takes)
    if not request.body.lstrip(b" \t\r\n").startswith(b"{"):
        return request
    body = request.body
    for each in changes:
        body = _apply(body, each, form)
    return request if body is request.body else msgspec.structs.replace(request, body=body)


def preview(request: WireRequest, changes: Sequence[RequestChanges]) -> tuple[str, ...]:
    """What the changes do to a request, as the lines of a diff. The request gets the members that they look for."""
    form = _form(request.path)
    body = request.body
    for each in changes:
        for name in filter(form.takes, (*each.rename, *each.drop)):
            body = body if _get(body, name) else _set(body, name, _encode("…"))
        for name, limit in each.limits.items():
            if not form.takes(name):
                continue
            given = form.limit if name in _LIMITS else name
            body = body if _get(body, given) else _set(body, given, _encode(2 * limit))
    before = msgspec.structs.replace(request, body=body)
    diff = difflib.ndiff(_lines(body), _lines(rewrite(before, changes).body))
    return tuple(line for line in diff if line.startswith(("+ ", "- ")))


def _lines(body: bytes) -> list[str]:
    return msgspec.json.format(body, indent=2).decode().splitlines()


def _form(path: str) -> RequestForm:
    path = path.partition("?")[0].rstrip("/")
    return next((form for end, form in _FORMS.items() if path.endswith(end)), _PLAIN)


def _apply(body: bytes, changes: RequestChanges, form: RequestForm) -> bytes:
    for before, after in changes.rename.items():
        value = _get(body, before)
        if value is not None:
            body = _set(body, before, None)
            body = _set(body, after, value) if _get(body, after) is None else body
    for name in changes.drop:
        body = _set(body, name, None)
    for name, given in changes.default.items():
        if form.takes(name) and _get(body, name) in (None, b"null"):
            body = _set(body, name, _encode(given))
    for name, limit in changes.limits.items():
        body = _limited(body, name, limit, form)
    for name, given in changes.force.items():
        if form.takes(name):
            body = _set(body, name, _encode(given))
    return _with_system(body, changes.system, form) if changes.system and form.system else body


def _limited(body: bytes, name: str, limit: float, form: RequestForm) -> bytes:
    is_length = name in _LIMITS
    found = False
    for each in _LIMITS if is_length else (name,):
        number = _number(_get(body, each))
        if number is None:
            continue
        found = True
        # A negative length is no limit at all.
        if number > limit or (is_length and number < 0):
            body = _set(body, each, _encode(limit))
    if is_length and not found and form.limit:
        given = name if name in ("max_tokens", "max_completion_tokens") and form.limit == "max_tokens" else form.limit
        body = _set(body, given, _encode(limit))
    return body


def _number(value: bytes | None) -> float | None:
    if value is None:
        return None
    number = _decode(value)
    return number if isinstance(number, int | float) and not isinstance(number, bool) else None


def _get(body: bytes, name: str) -> bytes | None:
    """The member's bytes; `None` if it is absent."""
    members = members_of(body)
    if name in members:
        return bytes(members[name])
    head, dot, rest = name.partition(".")
    inner = members.get(head) if dot else None
    return None if inner is None or not _is_object(bytes(inner)) else _get(bytes(inner), rest)


def _set(body: bytes, name: str, value: bytes | None) -> bytes:
    """The body with this member, or without it; the same object if that is no change."""
    members = members_of(body)
    before = members.get(name)
    head, dot, rest = name.partition(".")
    if not dot or before is not None:
        if before is None if value is None else before is not None and bytes(before) == value:
            return body
        if value is None:
            del members[name]
            return _encode(members)
        return patch(body, {name: value}, members)
    outer = members.get(head)
    inner = bytes(outer) if outer is not None and _is_object(bytes(outer)) else b"{}"
    changed = _set(inner, rest, value)
    return body if changed is inner or changed == inner else patch(body, {head: changed}, members)


def _is_object(value: bytes) -> bool:
    return value.lstrip(b" \t\r\n").startswith(b"{")


def _with_system(body: bytes, text: str, form: RequestForm) -> bytes:
    """The body with a text at the end of its system prompt."""
    if form.system == "messages":
        messages = _get(body, "messages")
        if messages is None or not messages.startswith(b"["):
            return body
        entries = [bytes(each) for each in _decode_list(messages)]
        at = next((index for index, each in enumerate(entries) if _role(each) in ("system", "developer")), None)
        if at is None:
            entries.insert(0, _encode({"role": "system", "content": text}))
        else:
            entries[at] = _set(entries[at], "content", _appended(_get(entries[at], "content"), text))
        return _set(body, "messages", b"[" + b",".join(entries) + b"]")
    return _set(body, form.system, _appended(_get(body, form.system), text))


def _role(message: bytes) -> Any:
    try:
        role = _get(message, "role")
        return None if role is None else _decode(role)
    except NOT_JSON:
        return None


def _appended(prompt: bytes | None, text: str) -> bytes:
    """A prompt with a text after it: the prompt is a text, a list of blocks, or absent."""
    value = None if prompt is None else _decode(prompt)
    if isinstance(value, list):
        blocks: Sequence[Any] = _decode_list(prompt or b"[]")
        return _encode([*blocks, {"type": "text", "text": text}])
    return _encode(f"{value}\n\n{text}" if isinstance(value, str) and value else text)
