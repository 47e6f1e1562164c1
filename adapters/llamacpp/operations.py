"""The routes of llama.cpp's protocol."""

from __future__ import annotations

from collections.abc import Mapping

from hostler.adapters.base import Operation

# Routes of llama-server also exist with a trailing slash; those that are not supported do not need one.
_SLASHES = ("", "/")


def _post(name: str, *paths: str) -> list[Operation]:
    return [Operation(name=name, path=path + slash) for path in paths for slash in _SLASHES]


def _model_info(name: str, *paths: str, scope: str = "read") -> list[Operation]:
    return [
        Operation(name=name, path=path + slash, methods=("GET",), scope=scope, model_info=True)
        for path in paths
        for slash in _SLASHES
    ]


def _write(name: str, path: str) -> list[Operation]:
    return [Operation(name=name, path=path + slash, scope="operate", writes=True) for slash in _SLASHES]


def _unsupported(name: str, path: str, *methods: str, scope: str = "infer") -> Operation:
    return Operation(name=name, path=path, methods=methods or ("POST",), scope=scope)


def _stream(name: str, path: str, method: str) -> Operation:
    return Operation(name=name, path=path, methods=(method,), writes=True, media_types=("",), resumes=True)


#: The catch-all for unknown paths: `OTHER_GET` for GET, `OTHER` for all other methods.
OTHER = "other"
OTHER_GET = "other_get"
#: Any path of a model's engine, below its name.
UPSTREAM = "upstream"
UNKNOWN = frozenset({OTHER, OTHER_GET, UPSTREAM})
#: A WebSocket connection to the engine of a model that is named outside of the body.
WEBSOCKET = "websocket"

_HANDSHAKE = "sec-websocket-key"

OPERATIONS: tuple[Operation, ...] = (
    # Without a key, as in llama-server: it only says that the server runs.
    *_model_info("health", "/health", "/v1/health", scope="open"),
    *_model_info("props", "/props", "/v1/props"),
    *_model_info("slots", "/slots"),
    *_model_info("version", "/version"),
    *_post("completion", "/completion", "/completions"),
    *_post("infill", "/infill"),
    *_post("embedding", "/embedding", "/embeddings"),
    *_post("rerank", "/rerank", "/reranking", "/v1/reranking"),
    *_post("tokenize", "/tokenize"),
    *_post("detokenize", "/detokenize"),
    *_post("apply_template", "/apply-template"),
    *_post("count", "/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
    *_post("count", "/responses/input_tokens", "/v1/responses/input_tokens"),
    *_post("control", "/v1/chat/completions/control"),
    *_post("decide", "/v1/systemone"),
    # An engine's own metrics. Without a model, `/metrics` is the gateway's.
    Operation(name="metrics", path="/metrics", methods=("GET",), query="model", scope="read"),
    Operation(name="adapters", path="/lora-adapters", methods=("GET",)),
    # The scales apply to all clients of an engine.
    Operation(name="scale", path="/lora-adapters", scope="operate", writes=True),
    *_write("load", "/models/load"),
    *_write("unload", "/models/unload"),
    Operation(name="watch", path="/models/sse", methods=("GET",), scope="read"),
    # Known but not supported: refused in llama-server's form.
    _unsupported("download", "/models", "POST", "DELETE", scope="operate"),
    _unsupported("set_props", "/props", scope="operate"),
    _unsupported("slot", "/slots/{id}", scope="operate"),
    _stream("follow", "/v1/stream", "GET"),
    _stream("stop", "/v1/stream", "DELETE"),
    _stream("lookup", "/v1/streams/lookup", "POST"),
    _unsupported("tools", "/tools", "GET", "POST"),
    _unsupported("proxy", "/cors-proxy", "GET", "POST"),
    Operation(name=WEBSOCKET, path="/upstream/{path:path}", methods=("GET",), header=_HANDSHAKE),
    Operation(name=UPSTREAM, path="/upstream/{path:path}", methods=("GET", "POST", "PUT", "PATCH", "DELETE")),
    Operation(name=WEBSOCKET, path="/{rest:path}", methods=("GET",), header=_HANDSHAKE),
    Operation(name=OTHER_GET, path="/{rest:path}", methods=("GET",)),
    Operation(name=OTHER, path="/{rest:path}", methods=("POST", "PUT", "PATCH", "DELETE")),
)

#: Operations whose response is a completion in llama-server's own form.
COMPLETIONS = frozenset({"completion", "infill"})

#: The member that the response of an operation has, or each response in a list of them.
ANSWER_MEMBERS: Mapping[str, str] = {
    "completion": "content",
    "infill": "content",
    "embedding": "embedding",
    "tokenize": "tokens",
    "detokenize": "content",
    "apply_template": "prompt",
    "count": "input_tokens",
}
