"""The routes of LM Studio's protocol."""

from __future__ import annotations

from hostler.adapters.base import Operation

#: Paths of the v0 API that are OpenAI's, and OpenAI's operations.
OPENAI_PATHS = {
    "/api/v0/chat/completions": "chat",
    "/api/v0/completions": "completions",
    "/api/v0/embeddings": "embeddings",
}

#: The v1 API, which has its own form of errors.
V1_PREFIX = "/api/v1/"


def _model_info(name: str, path: str) -> Operation:
    return Operation(name=name, path=path, methods=("GET",), scope="read", model_info=True)


OPERATIONS: tuple[Operation, ...] = (
    _model_info("models", "/api/v1/models"),
    _model_info("models", "/api/v1/models/"),
    # Sent by clients that only want to chat. Nothing is loaded before the first request, so no more scope is needed.
    *(Operation(name="load", path="/api/v1/models/load" + slash) for slash in ("", "/")),
    *(
        Operation(name="unload", path="/api/v1/models/unload" + slash, scope="operate", writes=True)
        for slash in ("", "/")
    ),
    # Some server may have started the download: it answers for it, and keeps its id.
    *(
        Operation(name="download", path="/api/v1/models/download" + slash, scope="operate", writes=True)
        for slash in ("", "/")
    ),
    *(
        Operation(name="download_status", path="/api/v1/models/download/status" + path, methods=("GET",), scope="read")
        for path in ("", "/", "/{id}")
    ),
    _model_info("list", "/api/v0/models"),
    _model_info("list", "/api/v0/models/"),
    _model_info("entry", "/api/v0/models/{id:path}"),
    *(Operation(name=name, path=path + slash) for path, name in OPENAI_PATHS.items() for slash in ("", "/")),
    *(Operation(name="chat_v1", path="/api/v1/chat" + slash) for slash in ("", "/")),
)
