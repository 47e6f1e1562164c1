"""Paths that no adapter knows: which of them an engine may be asked for, and which model's engine it is."""

from __future__ import annotations

import re

from hostler.adapters import form
from hostler.adapters.canonical import Origin, Output, Passthrough
from hostler.adapters.document import Document
from hostler.adapters.errors import BadRequest, MethodNotAllowed, NotFound
from hostler.adapters.llamacpp.wire import WIRE
from hostler.adapters.naming import elsewhere
from hostler.adapters.protocol import Incoming

_FORM = "multipart/form-data"
_MAX_PATH = 512

# Only plain paths: whatever two servers could read as two different ones (`..`, `//`, `%2e`, `;`, backslashes) is none.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._~:@+-]*)+/?")

# The gateway's own surface, and what on an engine is not a question to a model: its state, its files, its neighbours.
# Looked for anywhere in a path, since engines can be told to serve below a prefix.
_NOT_FORWARDED = frozenset(
    (
        *(
            "admin",
            "api",
            "cors-proxy",
            "docs",
            "events",
            "health",
            "healthz",
            "lora-adapters",
            "metrics",
            "openapi.json",
        ),
        *("models", "props", "readyz", "redoc", "slots", "stream", "streams", "tools", "ui", "version"),
    )
)


def decode(operation: str, incoming: Incoming) -> Passthrough:
    """The request as it goes to the engine. Raises `NotFound` for paths that are nobody's or not an engine's business."""
    _check(incoming)
    content_type = incoming.headers.get("content-type", "application/json")
    origin = Origin(
        wire=WIRE,
        operation=operation,
        body=incoming.body,
        method=incoming.method,
        path=incoming.path,
        query=incoming.query,
        content_type=content_type,
    )
    try:
        model, stream = _asked(incoming.body, content_type)
        model = model or elsewhere(incoming)
    except BadRequest as error:
        raise BadRequest(error.message) from None
    return Passthrough(origin=origin, model=model, output=Output(stream=stream))


def _check(incoming: Incoming) -> None:
    path = incoming.path
    if len(path) <= _MAX_PATH and _PLAIN.fullmatch(path):
        segments = path.lower().strip("/").split("/")
        if segments[0] == "models" or segments[:2] == ["v1", "models"]:
            raise MethodNotAllowed(f"{path[:200]} takes GET, not {incoming.method}", allowed=("GET", "HEAD"))
        if not _NOT_FORWARDED.intersection(segments):
            return
    raise NotFound(f"there is no {incoming.method} {path[:200]} here")


def _asked(body: bytes, content_type: str) -> tuple[str | None, bool]:
    """The model that a body names, and whether it asks for a stream."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _FORM:
        return form.field(body, content_type, "model"), form.field(body, content_type, "stream") == "true"
    start = body.lstrip(b" \t\r\n")[:1]
    if start == b"{" or (start and start != b"[" and kind == "application/json"):
        document = Document(body)
        return document.text("model"), document.flag("stream")
    return None, False
