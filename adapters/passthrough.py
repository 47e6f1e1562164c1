"""Requests that a backend's protocol does not describe: sent as they are, answered as they come.

The backend may know the path or not; if it does not, its own 404 is the answer. Only the model's name is replaced, where the
request has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

import msgspec

from hostler.adapters import json_body, multipart, sse
from hostler.adapters.base import Parser, WireRequest
from hostler.adapters.canonical import Chunk, Origin, ResponseHead

_FORM = "multipart/form-data"
_MODEL = re.compile(r"(?<![^&])model=[^&]*")


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


class ForwardingParser(Parser):
    """Passes on a response in the client's own protocol, `wire`."""

    def __init__(self, wire: str) -> None:
        self._wire = wire
        self.start(ResponseHead())

    def start(self, head: ResponseHead) -> None:
        self._is_body = not head.media_type.lower().startswith(sse.MEDIA_TYPE)
        self._splitter = sse.EventSplitter()

    def feed(self, data: bytes) -> Iterable[Chunk]:
        if self._is_body:
            return (Chunk(wire=self._wire, raw=data, is_body=True),)
        block = self._splitter.feed(data)
        return (Chunk(wire=self._wire, raw=block),) if block else ()

    def finish(self) -> Iterable[Chunk]:
        rest = b"" if self._is_body else self._splitter.remainder()
        return (Chunk(wire=self._wire, raw=rest),) if rest else ()
