"""Ollama's protocol as backends speak it: the request to send, and the reader for its answer."""

from __future__ import annotations

import msgspec

from hostler.adapters import document
from hostler.adapters.canonical import ChatRequest, CompletionRequest, Request
from hostler.adapters.errors import BadRequest
from hostler.adapters.ollama import gojson, memory
from hostler.adapters.ollama.parser import OllamaParser
from hostler.adapters.ollama.request_body import PATHS, operation, request_body
from hostler.adapters.ollama.wire import WIRE
from hostler.adapters.protocol import WireRequest
from hostler.adapters.unspoken import unspoken


class OllamaUpstream:
    """Builds requests for an Ollama server, and readers for its answers.

    A request that came in this protocol is sent on as it is, with `model` replaced and `stream` set if it differs.
    A request of another protocol must be expanded; it is written anew.
    """

    @property
    def wire(self) -> str:
        """The protocol's name."""
        return WIRE

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """The request for a backend that calls the model `model`."""
        origin = request.origin
        if origin.wire != WIRE:
            body = request_body(request, model=model, stream=stream)
            return WireRequest(path=PATHS[operation(request)], body=body)
        if origin.operation not in PATHS:
            raise unspoken(request, "Ollama's")
        changes: dict[str, bytes | None] = {"model": msgspec.json.encode(model)}
        if isinstance(request, ChatRequest | CompletionRequest) and stream != request.output.stream:
            changes["stream"] = msgspec.json.encode(stream)
        return WireRequest(path=PATHS[origin.operation], body=_patched(origin.body, changes))

    def parser(self, request: Request, *, fields: bool) -> OllamaParser:
        """A reader for the answer. Fields are decoded in any case: every line has to be looked into."""
        origin = request.origin
        return OllamaParser(origin.operation if origin.wire == WIRE else operation(request))


def _patched(body: bytes, changes: dict[str, bytes | None]) -> bytes:
    """The body with these members. One that only Go can read is written anew."""
    sent = gojson.read(body, "Request")
    if memory.packed(sent.array("context", "[]int")):
        # Numbers that this gateway made up are no tokens to a real Ollama.
        changes = {**changes, "context": None}
    try:
        members = document.Document(body).members
        if all(name == name.lower() for name in members):
            return document.patch(body, changes, members)
    except BadRequest:
        pass
    written = sent.all() | {name: msgspec.Raw(value or b"null") for name, value in changes.items()}
    return gojson.write(written)
