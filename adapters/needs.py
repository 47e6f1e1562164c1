"""What a request needs of a model, under the names of capabilities in model files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    Conversation,
    EmbedRequest,
    Media,
    Passthrough,
    Request,
    RerankRequest,
    Text,
)
from hostler.adapters.errors import BadRequest

Expand = Callable[[Request], Request]

#: Found in every body that has images, audio or tools, in any protocol.
_MARKS = (b"image", b"audio", b"tools", b"functions", b"data_url")
_NONE: frozenset[str] = frozenset()
#: What operations need that are passed through, by their names.
_PASSED: Mapping[str, str] = {
    **{name: name for name in ("transcriptions", "translations", "speech", "images", "moderations")},
    **dict.fromkeys(("image_edits", "image_variations"), "images"),
    "embedding": "embedding",
    "infill": "completion",
    "decide": "decision",
}


def service_of(request: Request) -> str | None:
    """The capability that a model must have to answer requests of this kind; `None` for requests of no such kind."""
    match request:
        case ChatRequest() | CompletionRequest():
            return "completion"
        case EmbedRequest():
            return "embedding"
        case RerankRequest():
            return "rerank"
        case Passthrough():
            return _PASSED.get(request.origin.operation)
    return None


def needs(request: Request, expand: Expand) -> frozenset[str]:
    """`completion`, `vision`, `audio` and `tools`, as far as the request needs them."""
    if not isinstance(request, ChatRequest | CompletionRequest):
        return _NONE
    found = {"completion"}
    if isinstance(request, ChatRequest) and any(mark in request.origin.body for mark in _MARKS):
        conversation = _conversation(request, expand)
        if conversation is not None:
            found.update(_needs_of(conversation))
    return frozenset(found)


def texts(request: Request, expand: Expand) -> Iterator[list[str]]:
    """The texts that have to fit into a context together: those of a conversation, or each input of an embedding."""
    if isinstance(request, ChatRequest):
        conversation = _conversation(request, expand)
        if conversation is not None:
            yield [*_texts(conversation)]
        return
    try:
        expanded = expand(request)
    except BadRequest:
        return
    if isinstance(expanded, CompletionRequest):
        yield [expanded.prompt or "", expanded.suffix or ""]
    elif isinstance(expanded, EmbedRequest):
        for text in expanded.inputs or ():
            yield [text]


def _conversation(request: ChatRequest, expand: Expand) -> Conversation | None:
    try:
        expanded = expand(request)
    except BadRequest:
        return None  # only a backend of the client's own protocol understands it
    return expanded.conversation if isinstance(expanded, ChatRequest) else None


def _needs_of(conversation: Conversation) -> Iterable[str]:
    if conversation.tools and conversation.tool_choice != "none":
        yield "tools"
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Media):
                yield "vision" if part.kind == "image" else "audio"


def _texts(conversation: Conversation) -> Iterable[str]:
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Text):
                yield part.text
        for call in message.tool_calls:
            yield call.arguments
