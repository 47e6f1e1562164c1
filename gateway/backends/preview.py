"""What the settings change in a request for a backend, shown on an example."""

from __future__ import annotations

from hostler.adapters.canonical import (
    ChatMessage,
    ChatRequest,
    Conversation,
    EmbedRequest,
    Origin,
    Request,
    RerankRequest,
    Text,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.model_list import ModelKind
from hostler.adapters.request_rewriting import preview
from hostler.gateway.backends.transport import Backend
from hostler.gateway.plain_models import CatalogBackend
from hostler.profiles.request_rules import RequestRules, changes_for

#: A protocol that no backend speaks, so that each writes the request in its own.
_ORIGIN = Origin(wire="example", operation="chat")
_CHAT = ChatRequest(
    origin=_ORIGIN, conversation=Conversation(messages=(ChatMessage(role="user", parts=(Text(text="Hello"),)),))
)
_EXAMPLES: dict[ModelKind, Request] = {
    "embedding": EmbedRequest(origin=_ORIGIN, inputs=("Hello",)),
    "rerank": RerankRequest(origin=_ORIGIN, query="Hello", documents=("Hello",)),
}


def preview_changes(
    backend: Backend, place: CatalogBackend, rules: tuple[RequestRules, ...], client: str, kind: ModelKind = "chat"
) -> tuple[str, ...]:
    """The lines of a diff, empty if nothing is changed. `client` is the name of a key, or an address, `kind` what the model
    is for."""
    changes = [*changes_for(rules, client)]
    if not changes:
        return ()
    try:
        example = backend.upstream.build(_EXAMPLES.get(kind, _CHAT), model=place.name_there, stream=False)
    except BadRequest:
        return ()  # the protocol has no such requests
    return preview(example, changes)
