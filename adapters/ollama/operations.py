"""The routes of Ollama's protocol. `/` and `HEAD /` belong to the gateway itself."""

from __future__ import annotations

import re

from hostler.adapters.base import Operation

_FORM = "application/x-www-form-urlencoded"

#: A known path with a method that it does not accept.
WRONG_METHOD = "wrong_method"

#: Any other path below /api: clients distinguish servers by their 404s. Paths with superfluous slashes are redirected.
UNKNOWN = "unknown"


def _model_info(name: str, path: str, *methods: str) -> Operation:
    return Operation(name=name, path=path, methods=methods or ("GET",), scope="read", model_info=True)


def _write(name: str, path: str, method: str = "POST", *, upload: bool = False) -> Operation:
    # Ollama takes JSON with any content type. Here: with those that programs send and web pages cannot (curl's forms,
    # none at all).
    types = ("application/octet-stream", _FORM, "") if upload else (_FORM, "")
    return Operation(
        name=name, path=path, methods=(method,), scope="operate", writes=True, media_types=types, upload=upload
    )


def _wrong_method(path: str, *methods: str) -> Operation:
    return Operation(name=WRONG_METHOD, path=path, methods=methods, scope="read")


OPERATIONS: tuple[Operation, ...] = (
    Operation(name="chat", path="/api/chat"),
    Operation(name="generate", path="/api/generate"),
    Operation(name="embed", path="/api/embed"),
    Operation(name="embeddings", path="/api/embeddings"),
    _model_info("version", "/api/version"),
    _model_info("tags", "/api/tags"),
    _model_info("ps", "/api/ps"),
    _model_info("show", "/api/show", "POST"),
    _model_info("status", "/api/status"),
    _model_info("me", "/api/me", "POST"),
    _model_info("recommendations", "/api/experimental/model-recommendations"),
    # Reading is enough for a model that is here; a download needs the scope `operate`, which is checked later.
    Operation(name="pull", path="/api/pull", scope="read", writes=True, media_types=(_FORM, "")),
    Operation(name="search", path="/api/experimental/web_search", scope="read"),
    Operation(name="fetch", path="/api/experimental/web_fetch", scope="read"),
    Operation(name="blob", path="/api/blobs/{digest}", methods=("HEAD",), scope="read"),
    _write("upload", "/api/blobs/{digest}", upload=True),
    _write("push", "/api/push"),
    _write("create", "/api/create"),
    _write("copy", "/api/copy"),
    _write("delete", "/api/delete", "DELETE"),
    _write("signout", "/api/signout"),
    _write("signout", "/api/user/keys/{key}", "DELETE"),
    # Everywhere else HEAD is accepted like GET; Ollama accepts it only where it says so.
    *(_wrong_method(path, "HEAD") for path in ("/api/ps", "/api/status", "/api/experimental/model-recommendations")),
    _wrong_method("/api/blobs/{digest}", "GET", "PUT", "PATCH", "DELETE"),
    *(
        Operation(name=UNKNOWN, path=path, methods=("GET", "POST", "PUT", "PATCH", "DELETE"), scope="read")
        for path in ("/api/{rest:path}", "//api/{rest:path}")
    ),
)


def allowed_methods(path: str) -> frozenset[str]:
    """The methods of a path, which is percent-encoded as sent."""
    return frozenset(method for operation in OPERATIONS if _matches(operation, path) for method in operation.methods)


def redirect_target(method: str, path: str) -> tuple[int, str] | None:
    """The status and path of the redirect for a path with superfluous slashes, as Go's router sends it."""
    clean = re.sub("/+", "/", path)
    target = clean.removesuffix("/")
    if target == path or ("GET" if method == "HEAD" else method) not in allowed_methods(target):
        return None
    return (301 if method == "GET" and clean == path else 307), target


def _matches(operation: Operation, path: str) -> bool:
    pattern, segments = operation.path.split("/"), path.split("/")
    if operation.name in (WRONG_METHOD, UNKNOWN) or len(pattern) != len(segments):
        return False
    return all(part == segment or part.startswith("{") for part, segment in zip(pattern, segments, strict=True))
