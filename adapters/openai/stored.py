"""Stored responses of the responses API: what requests refer to, what is stored, and the routes that show it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from hostler.adapters import json_body
from hostler.adapters.base import WireResponse
from hostler.adapters.canonical import ChatRequest, StoredRequest
from hostler.adapters.errors import BadRequest, NotFound, printable
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.stored_response import StoredResponse, StoredResponses

#: Inputs of requests from this size on, in bytes, are not stored.
MAX_INPUT = 1024**2
#: Responses larger than this, in bytes, are not stored.
MAX_STORED = 8 * 1024**2

_REFERENCES = (b"item_reference", b"previous_response_id")
_BARE_REFERENCE = re.compile(rb'\{\s*"id"\s*:\s*"[^"]{1,200}"\s*\}')
_MAX_ITEMS = 100
_UNFINISHED = ("queued", "in_progress")
#: The ids of responses, and of their items, that `ResponsesEncoder` makes up: no backend knows them.
_MADE_HERE = re.compile(r"resp_[0-9a-f]{16}|(msg|rs|fc|ctc)_[0-9a-f]{16}_\d+")

_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _ItemHead(msgspec.Struct):
    """What decides whether an item stands for another one."""

    type: str | None = None
    id: str | None = None
    role: str | None = None


class _ResponseHead(msgspec.Struct):
    id: str
    status: str | None = None
    output: list[msgspec.Raw] = []


_decode_head = msgspec.json.Decoder(_ItemHead).decode
_decode_response = msgspec.json.Decoder(_ResponseHead).decode


def wants_stored(request: ChatRequest) -> bool:
    """Whether the response is to be stored: it is unless the request says `"store": false`."""
    body = request.origin.body
    return b'"store"' not in body or bytes(json_body.members(body).get("store", b"")) != b"false"


def with_stored(request: ChatRequest, stored: StoredResponses, *, pass_on: bool) -> ChatRequest:
    """The request with its items instead of references to them, and after those of `previous_response_id`."""
    body = request.origin.body
    if not any(mark in body for mark in _REFERENCES) and _BARE_REFERENCE.search(body) is None:
        return request
    members = json_body.members(body)
    changes: dict[str, bytes | None] = {}
    own = _items(members.get("input"))
    items = [_resolved(item, index, stored, pass_on=pass_on) for index, item in enumerate(own)]
    previous_id = _text(members.get("previous_response_id"))
    if previous_id:
        history = stored.history(previous_id)
        if history is None:
            if pass_on and _may_be_elsewhere(previous_id, stored):
                return request
            raise _unusable_response(previous_id, is_stored=stored.find(previous_id) is not None)
        earlier = [item for each in history for item in (*each.input, *each.output.values())]
        items = [*earlier, *items]
        changes["previous_response_id"] = None
    elif items == own:
        return request
    changes["input"] = msgspec.json.encode(items)
    origin = msgspec.structs.replace(request.origin, body=json_body.patch(body, changes, members))
    return msgspec.structs.replace(request, origin=origin)


def stored_response(request: ChatRequest, body: bytes, at: float, stored: StoredResponses) -> StoredResponse | None:
    """The response to the request as its client sent it, with the items of that, not references to them."""
    try:
        head = _decode_response(body)
        if head.status in _UNFINISHED:
            return None
        complete = len(request.origin.body) < MAX_INPUT
        members = json_body.members(request.origin.body) if complete else {}
        own = [_stored_item(item, stored) for item in _items(members.get("input"))]
        output = {_decode_head(raw).id or f"item_{head.id}_{at}": _copy(raw) for at, raw in enumerate(head.output)}
    except NOT_JSON:
        return None
    return StoredResponse(
        id=head.id,
        at=at,
        body=msgspec.Raw(body),
        input=tuple(map(_copy, own)),
        output=output,
        previous=_text(members.get("previous_response_id")) or None,
        complete=complete,
    )


def stored_info(request: StoredRequest, stored: StoredResponses) -> WireResponse:
    """The stored response, or a page of the items that it answered."""
    found = stored.find(request.id)
    if found is None:
        raise NotFound(f"Response with id '{printable(request.id)}' not found.")
    if request.kind == "response":
        is_deletion = request.origin.method == "DELETE"
        return _deletion(found.id) if is_deletion else WireResponse(body=bytes(found.body))
    return WireResponse(body=msgspec.json.encode(_page(found, stored, request.origin.query)))


def _deletion(response_id: str) -> WireResponse:
    return WireResponse(body=msgspec.json.encode({"id": response_id, "object": "response", "deleted": True}))


def _page(found: StoredResponse, stored: StoredResponses, query: str) -> dict[str, Any]:
    """Input items, the latest first unless asked otherwise, all of the conversation."""
    history = stored.history(found.id) or [found]
    items = [item for each in history for item in _shown(each, last=each is history[-1])]
    asked = parse_qs(query)
    if asked.get("order", ["desc"])[-1] != "asc":
        items.reverse()
    after, limit = asked.get("after", [""])[-1], asked.get("limit", ["20"])[-1]
    if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= _MAX_ITEMS:
        raise BadRequest(f"`limit` must be a number from 1 to {_MAX_ITEMS}.", param="limit")
    ids = [item["id"] for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    page = items[start : start + int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + len(page) < len(items),
    }


def _shown(response: StoredResponse, *, last: bool) -> Iterable[dict[str, Any]]:
    """The items of a response's input, and its output unless it is the last, with ids and contents as lists."""
    for index, raw in enumerate(response.input):
        item = msgspec.json.decode(raw)
        content = item.get("content")
        if isinstance(content, str):
            kind = "output_text" if item.get("role") == "assistant" else "input_text"
            item["content"] = [{"type": kind, "text": content}]
        item["id"] = item.get("id") or f"msg_{response.id.removeprefix('resp_')}_in{index}"
        item.setdefault("type", "message")
        yield item
    if not last:
        yield from map(msgspec.json.decode, response.output.values())


def _stored_item(item: msgspec.Raw, stored: StoredResponses) -> msgspec.Raw:
    """The item, or the stored one that it stands for if there is one."""
    try:
        return _resolved(item, 0, stored, pass_on=True)
    except BadRequest:
        return item


def _resolved(item: msgspec.Raw, index: int, stored: StoredResponses, *, pass_on: bool) -> msgspec.Raw:
    """The item, or the stored one that it stands for."""
    try:
        head = _decode_head(item)
    except NOT_JSON:
        return item  # its error is found when the request is decoded
    # OpenAI's own rule: an item with an id alone is a reference.
    is_reference = head.type == "item_reference" or (head.type is None and head.role is None)
    if head.id is None or not is_reference:
        return item
    found = stored.find_item(head.id)
    if found is None and not (pass_on and _may_be_elsewhere(head.id, stored)):
        raise BadRequest(f"Item with id '{printable(head.id)}' not found.", param=f"input[{index}].id")
    return item if found is None else found


def _may_be_elsewhere(an_id: str, stored: StoredResponses) -> bool:
    """Whether a backend may have stored what has this id, and the client may see it."""
    return _MADE_HERE.fullmatch(an_id) is None and not stored.is_foreign(an_id)


def _unusable_response(response_id: str, *, is_stored: bool) -> BadRequest:
    """`is_stored`: the response is, but its input or an earlier response is not."""
    why = f"is stored without its whole conversation (inputs over {MAX_INPUT >> 20} MiB are not)"
    message = f"Previous response with id '{printable(response_id)}' {why if is_stored else 'not found'}"
    return BadRequest(f"{message}; send the conversation in `input`.", param="previous_response_id")


def _items(given: msgspec.Raw | None) -> list[msgspec.Raw]:
    """The items of `input`; a text is a message."""
    if given is None or bytes(given) == b"null":
        return []
    text = _text(given)
    if text is not None:
        return [msgspec.Raw(msgspec.json.encode({"type": "message", "role": "user", "content": text}))]
    try:
        return _decode_items(given)
    except NOT_JSON:
        return []


def _text(given: msgspec.Raw | None) -> str | None:
    try:
        value = None if given is None else msgspec.json.decode(given)
    except NOT_JSON:
        return None
    return value if isinstance(value, str) else None


def _copy(raw: msgspec.Raw) -> msgspec.Raw:
    """Without the body around it."""
    return msgspec.Raw(bytes(raw))
