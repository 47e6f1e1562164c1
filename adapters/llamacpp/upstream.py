"""llama-server as a backend: the request to send, in OpenAI's protocol or on its own routes, and the reader for its answer."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

from hostler.adapters import json_body, multipart
from hostler.adapters.base import Parser, Upstream, WireRequest
from hostler.adapters.llamacpp.completion import chosen, foldable, prompts, weighed
from hostler.adapters.llamacpp.operations import COMPLETIONS, UNKNOWN
from hostler.adapters.llamacpp.parser import LlamaCppParser
from hostler.adapters.llamacpp.schema import WIRE
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.types import Request

_FORM = "multipart/form-data"
_MODEL = re.compile(r"(?<![^&])model=[^&]*")


class LlamaCppUpstream(Upstream):
    """Builds requests for an engine. A client's protocol that the engine speaks too is spoken; all others become OpenAI's.

    `also` are further protocols of the engine's, each as an upstream of its own.
    """

    def __init__(self, *also: Upstream, prefix: str = "/v1") -> None:
        self._openai = OpenAIUpstream(prefix=prefix, engine=True)
        # Requests of other protocols are written in OpenAI's, and the engine's errors have its form.
        self.wire = self._openai.wire
        self._others = {upstream.wire: upstream for upstream in also}

    def speaks(self, wire: str) -> bool:
        """Whether a request of this protocol is sent on as it is."""
        return wire in (WIRE, self._openai.wire) or wire in self._others

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """The request for a backend that calls the model `model`. On llama-server's own routes it stays as it came."""
        origin = request.origin
        if origin.wire != WIRE:
            return self._for(origin.wire).build(request, model=model, stream=stream)
        query = _MODEL.sub(f"model={quote(model, safe='')}", origin.query)
        path = f"{origin.path}?{query}" if query else origin.path
        body = origin.body
        if origin.content_type.lower().startswith(_FORM):
            if multipart.field(body, origin.content_type, "model") is not None:
                body = multipart.patch(body, origin.content_type, "model", model)
        elif is_object(body):
            members = json_body.members(body)
            changes: dict[str, bytes | None] = {}
            # A route that is not known here may be strict about what it takes: nothing is added there.
            if origin.operation not in UNKNOWN or "model" in members:
                changes["model"] = msgspec.json.encode(model)
            if stream and origin.operation in COMPLETIONS and foldable(members) and not weighed(members):
                changes["stream"] = b"true"
            body = json_body.patch(body, changes, members)
        return WireRequest(method=origin.method, path=path, body=body, content_type=origin.content_type)

    def parser(self, request: Request, *, fields: bool) -> Parser:
        """A reader for the answer; `fields` asks for decoded fields beside the raw bytes."""
        origin = request.origin
        if origin.wire != WIRE:
            return self._for(origin.wire).parser(request, fields=fields)
        if origin.operation not in COMPLETIONS or not is_object(origin.body):
            return LlamaCppParser()
        members = json_body.members(origin.body)
        # Whose fields are chosen, the end of the stream may be among those left out.
        return LlamaCppParser(answers=0 if chosen(members) else prompts(members))

    def _for(self, wire: str) -> Upstream:
        return self._others.get(wire, self._openai)


def is_object(body: bytes) -> bool:
    """Whether a body that has been checked before is a JSON object."""
    return body.lstrip(b" \t\r\n").startswith(b"{")
