"""Anthropic's protocol as backends speak it: the request to send, and the reader for its answer."""

from __future__ import annotations

import msgspec

from hostler.adapters import document
from hostler.adapters.anthropic.history import without_unsigned
from hostler.adapters.anthropic.parser import AnthropicParser
from hostler.adapters.anthropic.paths import COUNT, HEADER, MESSAGES, PATHS
from hostler.adapters.anthropic.request_body import request_body
from hostler.adapters.anthropic.wire import WIRE
from hostler.adapters.canonical import ChatRequest, CountRequest, Request
from hostler.adapters.protocol import WireRequest
from hostler.adapters.unspoken import unspoken

_VERSION = (HEADER, "2023-06-01")


class AnthropicUpstream:
    """Builds requests for a backend of this protocol, and readers for its answers.

    A request that came in this protocol is sent on as it is, with `model` replaced and its own protocol headers: what
    such a server alone knows (signed thoughts, caching, tools that it runs itself) stays whole. Only thoughts without a
    signature, of other models that answered before, are left out. A request of another protocol must be expanded; it is
    written anew.
    """

    @property
    def wire(self) -> str:
        """The protocol's name."""
        return WIRE

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """The request for a backend that calls the model `model`. Whole answers come whole: they need no folding."""
        if not isinstance(request, ChatRequest | CountRequest):
            raise unspoken(request, "Anthropic's")
        path = PATHS[COUNT if isinstance(request, CountRequest) else MESSAGES]
        origin = request.origin
        if origin.wire != WIRE:
            body = request_body(request, model=model, stream=stream)
            return WireRequest(path=path, body=body, headers=(_VERSION,))
        headers = origin.headers if any(name == HEADER for name, _ in origin.headers) else (_VERSION, *origin.headers)
        return WireRequest(
            path=f"{path}?{origin.query}" if origin.query else path,
            body=document.patch(without_unsigned(origin.body), {"model": msgspec.json.encode(model)}),
            headers=headers,
        )

    def parser(self, request: Request, *, fields: bool) -> AnthropicParser:
        """A reader for the answer; `fields` asks for decoded fields instead of the bytes."""
        return AnthropicParser(fields=fields or isinstance(request, CountRequest))
