"""OpenAI's protocol as backends speak it: the request to send, and the reader for its answer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hostler.adapters import document, form
from hostler.adapters.canonical import Request, output_of
from hostler.adapters.openai.history import without_progress
from hostler.adapters.openai.parser import OpenAIParser
from hostler.adapters.openai.paths import FORMS, UPSTREAM_PATHS
from hostler.adapters.openai.request_body import operation, request_body
from hostler.adapters.openai.reranking import plain_documents
from hostler.adapters.openai.wire import RESPONSES, WIRE
from hostler.adapters.protocol import WireRequest

# Operations whose stream can be folded into the whole answer.
_FOLDED = frozenset({"chat", "completions", "responses"})

# What asks for more than a stream tells. `"logprobs": 0` does so as well, but of one token it is the same.
_TOLD_WHOLE = ("verbose", "logprobs", "n_probs")


class OpenAIUpstream:
    """Builds requests for a backend of this protocol, and readers for its answers.

    A request that came in this protocol is sent on as it is: `model` is replaced, `stream` added where a whole
    answer is to be folded from a stream, the gateway's own progress lines are taken out of the history, and every
    other byte stays. A request of another protocol must be expanded; it is written anew.
    `engine`: the backend is llama.cpp's server, which can be asked for more.
    """

    def __init__(self, wire: str = WIRE, *, prefix: str = "/v1", engine: bool = False) -> None:
        self._wire = wire
        self._prefix = prefix
        self._engine = engine

    @property
    def wire(self) -> str:
        """The protocol's name."""
        return self._wire

    def speaks(self, wire: str) -> bool:
        """Whether a request of this protocol is sent on as it is. Engines are asked for chats instead of responses:
        llama-server's lack the numbers by which clients put them together.
        """
        return wire == self._wire or (wire == RESPONSES and not self._engine)

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """The request for a backend that calls the model `model`."""
        origin = request.origin
        if not self.speaks(origin.wire):
            body = request_body(request, model=model, stream=stream, engine=self._engine)
            return WireRequest(path=self._prefix + UPSTREAM_PATHS[operation(request)], body=body)
        path = self._prefix + UPSTREAM_PATHS[origin.operation]
        if origin.operation in FORMS:
            sent = form.patch(origin.body, origin.content_type, "model", model)
            return WireRequest(path=path, body=sent, content_type=origin.content_type)
        body = without_progress(origin.body) if origin.operation == "chat" else origin.body
        members = document.members(body, origin.document)
        changes: dict[str, bytes | None] = {}
        name = msgspec.json.encode(model)
        if bytes(members.get("model", b"")) != name:
            changes["model"] = name
        if origin.operation == "rerank" and (texts := plain_documents(body)) is not None:
            changes["documents"] = texts
        if stream and origin.operation in _FOLDED and not output_of(request).stream and _foldable(members):
            changes["stream"] = b"true"
            if origin.operation != "responses":
                changes["stream_options"] = _with_usage(members.get("stream_options"))
        return WireRequest(path=path, body=document.patch(body, changes, members) if changes else body)

    def parser(self, request: Request, *, fields: bool) -> OpenAIParser:
        """A reader for the answer; `fields` asks for decoded fields beside the raw bytes."""
        asked = request.origin.operation if self.speaks(request.origin.wire) else operation(request)
        return OpenAIParser(asked, fields=fields, choices=output_of(request).choices)


def _foldable(members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a stream tells what the whole answer would. llama-server's leaves out what it adds for debugging, and
    the probabilities of tokens that are held back until a call or a stop word is complete."""
    return all(bytes(members.get(name, msgspec.Raw(b"null"))) in (b"null", b"false", b"0") for name in _TOLD_WHOLE)


def _with_usage(options: msgspec.Raw | None) -> bytes:
    # The whole answer that is folded from the stream must hold the counts.
    members: dict[str, msgspec.Raw] = {}
    if options is not None and bytes(options) != b"null":
        members = msgspec.json.decode(options, type=dict[str, msgspec.Raw])
    members["include_usage"] = msgspec.Raw(b"true")
    return msgspec.json.encode(members)
