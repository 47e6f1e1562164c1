"""llama-server as a backend: builds requests and parsers, for OpenAI's protocol and its own routes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hostler.adapters import json_body
from hostler.adapters.base import Parser, Upstream, WireRequest
from hostler.adapters.canonical import Request, output_of
from hostler.adapters.llamacpp import discovery
from hostler.adapters.llamacpp.completion import count_prompts, has_response_fields, is_foldable, wants_probabilities
from hostler.adapters.llamacpp.operations import COMPLETIONS, UNKNOWN
from hostler.adapters.llamacpp.response_parser import LlamaCppParser
from hostler.adapters.llamacpp.schema import WIRE
from hostler.adapters.openai.upstream import OpenAIUpstream, asks_progress
from hostler.adapters.passthrough import forwarded, forwarding_parser, target_path
from hostler.adapters.remote_models import Discovery, RemoteModel


class LlamaCppUpstream(Upstream):
    """An engine gets requests in the client's protocol if it speaks that, all others in OpenAI's.

    `others` are further protocols of the engine, each with its own upstream. `progress`: it is asked how far it has read the
    prompts of streams.
    """

    def __init__(self, *others: Upstream, progress: bool = False) -> None:
        self._openai = OpenAIUpstream(engine=True, progress=progress)
        self._progress = progress
        # Requests of other protocols are written in OpenAI's, and the engine's errors have its form.
        self.wire = self._openai.wire
        self._others = {upstream.wire: upstream for upstream in others}

    def speaks(self, wire: str) -> bool:
        return wire in (WIRE, self._openai.wire) or wire in self._others

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        origin = request.origin
        if origin.wire != WIRE:
            return self._for(origin.wire).build(request, model=model, stream=stream)
        if origin.operation in UNKNOWN or not is_object(origin.body):
            return forwarded(origin, model=model, path=origin.path)
        members = json_body.members(origin.body)
        changes: dict[str, bytes | None] = {"model": msgspec.json.encode(model)}
        if stream and origin.operation in COMPLETIONS and is_foldable(members) and not wants_probabilities(members):
            changes["stream"] = b"true"
        if self._progress and origin.operation in COMPLETIONS and output_of(request).stream:
            changes["return_progress"] = b"true"
        return WireRequest(
            method=origin.method,
            path=target_path(origin, model=model, path=origin.path),
            body=json_body.patch(origin.body, changes, members),
            content_type=origin.content_type,
        )

    def parser(self, request: Request, *, fields: bool) -> Parser:
        origin = request.origin
        if origin.wire != WIRE:
            return self._for(origin.wire).parser(request, fields=fields)
        if origin.operation not in COMPLETIONS or not is_object(origin.body):
            return forwarding_parser(request)
        members = json_body.members(origin.body)
        # If the client chose the fields, the end of the stream may be left out.
        return LlamaCppParser(
            responses=0 if has_response_fields(members) else count_prompts(members),
            strips_progress=self._progress and not asks_progress(origin.body),
        )

    def discover(self, known: Mapping[str, RemoteModel]) -> Discovery:
        return discovery.discover()

    def _for(self, wire: str) -> Upstream:
        return self._others.get(wire, self._openai)


def is_object(body: bytes) -> bool:
    """Whether a valid body is a JSON object."""
    return body.lstrip(b" \t\r\n").startswith(b"{")
