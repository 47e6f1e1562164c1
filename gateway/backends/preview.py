"""What the settings change in a request for a backend, shown on an example."""

from __future__ import annotations

from hostler.adapters.canonical import ChatMessage, ChatRequest, Conversation, Origin, Text
from hostler.adapters.request_rewriting import preview
from hostler.gateway.backends.transport import Backend
from hostler.gateway.plain_models import CatalogBackend
from hostler.profiles.request_rules import RequestRules, changes_for

#: A protocol that no backend speaks, so that each writes the request in its own.
_EXAMPLE = ChatRequest(
    origin=Origin(wire="example", operation="chat"),
    conversation=Conversation(messages=(ChatMessage(role="user", parts=(Text(text="Hello"),)),)),
)


def preview_changes(
    backend: Backend, place: CatalogBackend, rules: tuple[RequestRules, ...], client: str
) -> tuple[str, ...]:
    """The lines of a diff, empty if nothing is changed. `client` is the name of a key, or an address."""
    changes = [*changes_for(rules, client)]
    if not changes:
        return ()
    return preview(backend.upstream.build(_EXAMPLE, model=place.name_there, stream=False), changes)
