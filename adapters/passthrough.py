"""Requests that a backend's protocol does not describe: sent as they are, answered as they come.

The backend may know the path or not; if it does not, its own 404 is the answer. Only the model's name is replaced, where the
request has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from hostler.adapters import json_body, lenient, multipart, sse
from hostler.adapters.base import Parser, WireRequest, is_media, raise_after
from hostler.adapters.canonical import Chunk, Origin, Passthrough, Request, ResponseHead
from hostler.adapters.error_body import error_in, error_in_response
from hostler.adapters.errors import (
    BackendBroken,
    GatewayError,
    empty_response,
    incomplete_response,
    invalid_event,
    invalid_response,
    truncated_response,
)
from hostler.adapters.held_chunks import HeldChunks
from hostler.adapters.json_body import NOT_JSON

_FORM = "multipart/form-data"
_MODEL = re.compile(r"(?<![^&])model=[^&]*")
_DONE = b"[DONE]"
_STARTS = frozenset({b"{", b"[", b""})
_ENDS = frozenset({b"}", b"]"})
#: Members of responses to other requests, and of reports about a server.
_OTHER_MEMBERS = frozenset({"choices", "content", "data", "detail", "message", "object", "results", "status"})
#: Bytes of a whole response that are checked, at most: an error is never so long.
_MAX_CHECKED = 256 * 1024


def forwarded(origin: Origin, *, model: str, path: str, headers: tuple[tuple[str, str], ...] = ()) -> WireRequest:
    """The request for a backend that calls the model `model`; empty if the request names none."""
    return WireRequest(
        method=origin.method,
        path=target_path(origin, model=model, path=path),
        body=_with_model(origin.body, origin.content_type, model) if model else origin.body,
        content_type=origin.content_type,
        headers=headers,
    )


def target_path(origin: Origin, *, model: str, path: str) -> str:
    """The path with the client's query, in which the model has the backend's name."""
    if not origin.query:
        return path
    query = _MODEL.sub(f"model={quote(model, safe='')}", origin.query) if model else origin.query
    return f"{path}?{query}"


def _with_model(body: bytes, content_type: str, model: str) -> bytes:
    if content_type.lower().startswith(_FORM):
        named = multipart.field(body, content_type, "model") is not None
        return multipart.patch(body, content_type, "model", model) if named else body
    if not body.lstrip(b" \t\r\n").startswith(b"{"):
        return body
    members = json_body.members(body)
    return json_body.patch(body, {"model": msgspec.json.encode(model)}, members) if "model" in members else body


def forwarding_parser(request: Request, *, foreign: bool = False) -> Parser:
    """The parser for the response to a request that is forwarded as it is.

    A `foreign` backend speaks another protocol: it may know the path, but answers in its own form.
    """
    wire = request.origin.wire
    if isinstance(request, Passthrough) and request.has_json:
        return JsonForwardingParser(wire, request.member, foreign=foreign)
    return ForwardingParser(wire)


class ForwardingParser(Parser):
    """Passes on a response in the client's own protocol, `wire`, whatever it contains."""

    def __init__(self, wire: str) -> None:
        self._wire = wire
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        self._is_body = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self.holds_back = not is_media(head.media_type)
        self._splitter = sse.EventSplitter()

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._is_body:
            return (Chunk(wire=self._wire, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        return (Chunk(wire=self._wire, raw=block),) if block else ()

    def finish(self) -> Iterable[Chunk]:
        rest = b"" if self._is_body else self._splitter.remainder()
        return (Chunk(wire=self._wire, raw=rest),) if rest else ()


class JsonForwardingParser(Parser):
    """Passes on a response in the client's own protocol, `wire`, on a route that answers in JSON, as a whole or in events.

    Anything else is no response: an empty one, a login page, an error with status 200; or JSON without `member`. A `foreign`
    backend may answer in a form of its own instead, but not with a response to something else.
    """

    def __init__(self, wire: str, member: str = "", *, foreign: bool = False) -> None:
        self._wire = wire
        self._member = member
        self._foreign = foreign
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        self._length = head.length
        self._is_body = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._splitter = sse.EventSplitter()
        self._body = bytearray()
        self._size = 0
        self._tail = b""
        self._has_answer = False
        self._held = HeldChunks()

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._is_body:
            if not self._tail and data.lstrip()[:1] not in _STARTS:
                raise invalid_response()
            self._size += len(data)
            self._tail = data.strip()[-1:] or self._tail
            if self._size <= _MAX_CHECKED:
                self._body += data
            return (Chunk(wire=self._wire, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        return self._read(block) if block else ()

    def take_signs(self) -> bytes:
        return self._held.take_signs()

    def finish(self) -> Iterable[Chunk]:
        if self._is_body:
            self._check_body()
            return ()
        rest = self._splitter.remainder()
        chunks = self._read(rest.rstrip(b"\r\n") + b"\n\n") if rest else self._held.take()
        if not self._has_answer:
            raise incomplete_response()
        return chunks

    def _check_body(self) -> None:
        if self._length is not None and self._size != self._length:
            raise truncated_response(self._size, self._length)
        if not self._tail:
            raise empty_response()
        if self._size > _MAX_CHECKED:
            if self._tail not in _ENDS:
                raise incomplete_response()
            return
        if not self._has_content(_checked(bytes(self._body), invalid_response())):
            raise invalid_response()

    def _read(self, block: bytes) -> Iterable[Chunk]:
        kept: list[bytes] = []
        for event in sse.split(block):
            _, data = sse.parse(event)
            if data is not None:
                try:
                    self._notice(data)
                except GatewayError as error:
                    if not self._has_answer:
                        # Nothing was passed on yet, so another backend may still answer.
                        raise
                    return raise_after([Chunk(wire=self._wire, raw=b"".join(kept))] if kept else [], error)
            kept.append(event)
        if not self._has_answer:
            self._held.add_sign(self._wire, b"".join(kept))
            return ()
        return (*self._held.take(), Chunk(wire=self._wire, raw=b"".join(kept)))

    def _notice(self, data: bytes) -> None:
        """Take in the data of an event. Raises `BackendBroken` for an error, and for what cannot begin a response."""
        if data == _DONE and self._has_answer:
            return
        value = _checked(data, invalid_event())
        if not (self._has_answer or self._has_content(value)):
            raise invalid_event()
        self._has_answer = True

    def _has_content(self, value: Any) -> bool:
        if not self._member:
            return True
        answers = value if isinstance(value, list) else [value]
        return bool(answers) and all(map(self._is_answer, answers))

    def _is_answer(self, value: Any) -> bool:
        if isinstance(value, list):
            return self._foreign and bool(value)  # text-embeddings-inference lists the tokens of each text
        if not isinstance(value, dict):
            return False
        if value.get(self._member) is not None or self._are_answers(value.get("data")):
            return True
        return self._foreign and value.keys().isdisjoint(_OTHER_MEMBERS)

    def _are_answers(self, data: Any) -> bool:
        """Whether this is a list of answers, as servers with OpenAI's forms send it: vectors with numbers, not of nothing."""
        if self._member != "embedding" or not isinstance(data, list) or not data:
            return False
        vectors = [each.get(self._member) if isinstance(each, dict) else None for each in data]
        return all(isinstance(vector, list) and vector and isinstance(vector[0], int | float) for vector in vectors)


def _checked(data: bytes, invalid: BackendBroken) -> Any:
    """The JSON. Raises the error that it reports, or `invalid` for what is no object and no list."""
    try:
        value = lenient.decode_any(data)
    except NOT_JSON:
        raise invalid from None
    if error_in(value) is not None:
        raise error_in_response(data)
    if not isinstance(value, dict | list) or value == {}:
        raise invalid
    return value
