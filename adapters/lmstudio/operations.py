"""What LM Studio's clients can ask and where: the operations as one table."""

from __future__ import annotations

from hostler.adapters.base import Operation

# Paths of the older interface, answered as OpenAI's: path -> OpenAI's name for it.
DELEGATED = {
    "/api/v0/chat/completions": "chat",
    "/api/v0/completions": "completions",
    "/api/v0/embeddings": "embeddings",
}


def _probe(name: str, path: str) -> Operation:
    return Operation(name=name, path=path, methods=("GET",), scope="read", probe=True)


# The interface of today, with errors of its own.
NEWER = "/api/v1/"

OPERATIONS: tuple[Operation, ...] = (
    _probe("models", "/api/v1/models"),
    _probe("models", "/api/v1/models/"),
    # Asked for by clients that only want to chat: nothing is loaded before the first request, so this needs no more.
    *(Operation(name="load", path="/api/v1/models/load" + slash) for slash in ("", "/")),
    *(
        Operation(name="unload", path="/api/v1/models/unload" + slash, scope="operate", writes=True)
        for slash in ("", "/")
    ),
    _probe("list", "/api/v0/models"),
    _probe("list", "/api/v0/models/"),
    _probe("entry", "/api/v0/models/{id:path}"),
    *(Operation(name=name, path=path + slash) for path, name in DELEGATED.items() for slash in ("", "/")),
    *(Operation(name="say", path="/api/v1/chat" + slash) for slash in ("", "/")),
)
