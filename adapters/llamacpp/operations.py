"""What llama.cpp's clients can ask and where: the operations as one table."""

from __future__ import annotations

from hostler.adapters.base import Operation

# What llama-server answers, it answers here with a trailing slash, too; what is refused needs none.
_SLASHES = ("", "/")


def _each(name: str, *paths: str) -> list[Operation]:
    return [Operation(name=name, path=path + slash) for path in paths for slash in _SLASHES]


def _probe(name: str, *paths: str, scope: str = "read") -> list[Operation]:
    return [
        Operation(name=name, path=path + slash, methods=("GET",), scope=scope, probe=True)
        for path in paths
        for slash in _SLASHES
    ]


def _order(name: str, path: str) -> list[Operation]:
    return [Operation(name=name, path=path + slash, scope="operate", writes=True) for slash in _SLASHES]


def _refused(name: str, path: str, *methods: str, scope: str = "infer") -> Operation:
    return Operation(name=name, path=path, methods=methods or ("POST",), scope=scope)


# The catch-all: any path that nobody else knows, to be asked or to be looked at.
OTHER, LOOK = "other", "look"
UNKNOWN = frozenset({OTHER, LOOK})

OPERATIONS: tuple[Operation, ...] = (
    # As llama-server's own it needs no key: it tells that somebody listens, and nothing else.
    *_probe("health", "/health", "/v1/health", scope="open"),
    *_probe("props", "/props", "/v1/props"),
    *_probe("slots", "/slots"),
    *_probe("version", "/version"),
    *_each("completion", "/completion", "/completions"),
    *_each("infill", "/infill"),
    *_each("embedding", "/embedding", "/embeddings"),
    *_each("rerank", "/rerank", "/reranking", "/v1/reranking"),
    *_each("tokenize", "/tokenize"),
    *_each("detokenize", "/detokenize"),
    *_each("apply_template", "/apply-template"),
    *_each("count", "/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
    *_each("count", "/responses/input_tokens", "/v1/responses/input_tokens"),
    *_each("control", "/v1/chat/completions/control"),
    *_each("decide", "/v1/systemone"),
    # An engine's own counters. Without a model's name, `/metrics` is the gateway's.
    Operation(name="metrics", path="/metrics", methods=("GET",), query="model", scope="read"),
    Operation(name="adapters", path="/lora-adapters", methods=("GET",)),
    # The scales are the engine's, for all its clients.
    Operation(name="scale", path="/lora-adapters", scope="operate", writes=True),
    *_order("load", "/models/load"),
    *_order("unload", "/models/unload"),
    Operation(name="watch", path="/models/sse", methods=("GET",), scope="read"),
    # Known, and not done here: said in llama-server's words.
    _refused("fetch", "/models", "POST", "DELETE", scope="operate"),
    _refused("set_props", "/props", scope="operate"),
    _refused("slot", "/slots/{id}", scope="operate"),
    _refused("stream", "/v1/stream", "GET"),
    # To stop one: none goes on without its client.
    Operation(name="drop", path="/v1/stream", methods=("DELETE",)),
    _refused("lookup", "/v1/streams/lookup"),
    _refused("tools", "/tools", "GET", "POST"),
    _refused("proxy", "/cors-proxy", "GET", "POST"),
    Operation(name=LOOK, path="/{rest:path}", methods=("GET",)),
    Operation(name=OTHER, path="/{rest:path}"),
)

# Operations that answer with a completion in llama-server's own form.
COMPLETIONS = frozenset({"completion", "infill"})
