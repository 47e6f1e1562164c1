"""What Ollama's clients can ask, by path. `/` and `HEAD /` are the gateway's own."""

from __future__ import annotations

import re

from hostler.adapters.base import Operation

_FORM = "application/x-www-form-urlencoded"


def _probe(name: str, path: str, *methods: str) -> Operation:
    return Operation(name=name, path=path, methods=methods or ("GET",), scope="read", probe=True)


def _order(name: str, path: str, method: str = "POST", *, upload: bool = False) -> Operation:
    # As Ollama, which takes JSON of any type, as far as no web page can have it sent: curl's forms, a body without one.
    media = ("application/octet-stream", _FORM, "") if upload else (_FORM, "")
    return Operation(name=name, path=path, methods=(method,), scope="operate", writes=True, media=media, upload=upload)


def _wrong(path: str, *methods: str) -> Operation:
    return Operation(name=WRONG, path=path, methods=methods, scope="read")


# What is there, asked for with a method that it does not take.
WRONG = "wrong"

# Whatever else is asked below /api: clients tell servers apart by how they say that they do not know it. What has a
# slash too many is sent to where it is without.
UNKNOWN = "unknown"

OPERATIONS: tuple[Operation, ...] = (
    Operation(name="chat", path="/api/chat"),
    Operation(name="generate", path="/api/generate"),
    Operation(name="embed", path="/api/embed"),
    Operation(name="embeddings", path="/api/embeddings"),
    _probe("version", "/api/version"),
    _probe("tags", "/api/tags"),
    _probe("ps", "/api/ps"),
    _probe("show", "/api/show", "POST"),
    _probe("status", "/api/status"),
    _probe("me", "/api/me", "POST"),
    _probe("recommendations", "/api/experimental/model-recommendations"),
    # Of a model that is here it is a question; to have one come takes the scope `operate`, which is asked for later.
    Operation(name="pull", path="/api/pull", scope="read", writes=True, media=(_FORM, "")),
    Operation(name="search", path="/api/experimental/web_search", scope="read"),
    Operation(name="fetch", path="/api/experimental/web_fetch", scope="read"),
    Operation(name="blob", path="/api/blobs/{digest}", methods=("HEAD",), scope="read"),
    _order("upload", "/api/blobs/{digest}", upload=True),
    _order("push", "/api/push"),
    _order("create", "/api/create"),
    _order("copy", "/api/copy"),
    _order("delete", "/api/delete", "DELETE"),
    _order("signout", "/api/signout"),
    _order("signout", "/api/user/keys/{key}", "DELETE"),
    # Elsewhere HEAD is taken wherever GET is; Ollama takes it where it says so.
    *(_wrong(path, "HEAD") for path in ("/api/ps", "/api/status", "/api/experimental/model-recommendations")),
    _wrong("/api/blobs/{digest}", "GET", "PUT", "PATCH", "DELETE"),
    *(
        Operation(name=UNKNOWN, path=path, methods=("GET", "POST", "PUT", "PATCH", "DELETE"), scope="read")
        for path in ("/api/{rest:path}", "//api/{rest:path}")
    ),
)


def allowed_methods(path: str) -> frozenset[str]:
    """The methods that a path takes, percent-encoded as sent."""
    return frozenset(method for each in OPERATIONS if _fits(each, path) for method in each.methods)


def redirect_target(method: str, path: str) -> tuple[int, str] | None:
    """The status and the path by which a request is sent on that has slashes too many, as Go's router does it."""
    clean = re.sub("/+", "/", path)
    target = clean.removesuffix("/")
    if target == path or ("GET" if method == "HEAD" else method) not in allowed_methods(target):
        return None
    return (301 if method == "GET" and clean == path else 307), target


def _fits(operation: Operation, path: str) -> bool:
    steps, others = operation.path.split("/"), path.split("/")
    same = operation.name not in (WRONG, UNKNOWN) and len(steps) == len(others)
    return same and all(step == other or step.startswith("{") for step, other in zip(steps, others, strict=True))
