"""What OpenAI clients can ask and where: the operations as one table."""

from __future__ import annotations

from hostler.adapters.base import Operation

# name -> path below the prefix, method. Every path exists with /v1 and without, with a trailing slash and without.
_POSTS: tuple[tuple[str, str], ...] = (
    ("chat", "/chat/completions"),
    ("completions", "/completions"),
    ("embeddings", "/embeddings"),
    ("responses", "/responses"),
    ("moderations", "/moderations"),
    ("transcriptions", "/audio/transcriptions"),
    ("translations", "/audio/translations"),
    ("speech", "/audio/speech"),
    ("images", "/images/generations"),
    ("image_edits", "/images/edits"),
    ("image_variations", "/images/variations"),
)

# Paths that are llama.cpp's own at the root. An adapter that claims `/completions` and `/embeddings` there too, which
# llama.cpp answers in its native form, needs them named here.
_ONLY_V1 = frozenset({"completions", "embeddings", "rerank"})

# Operations whose body is a form with files instead of JSON.
FORMS = frozenset({"transcriptions", "translations", "image_edits", "image_variations"})


def _operations() -> tuple[Operation, ...]:
    found: list[Operation] = []
    for prefix in ("/v1", ""):
        for name, path in (*_POSTS, ("rerank", "/rerank")):
            if prefix or name not in _ONLY_V1:
                found += (Operation(name=name, path=prefix + path + slash) for slash in ("", "/"))
        # The list before the single model: its pattern would take the list's trailing slash for an empty name.
        found += (
            Operation(name="models", path=prefix + "/models" + slash, methods=("GET",), scope="read", probe=True)
            for slash in ("", "/")
        )
        found.append(
            Operation(name="model", path=prefix + "/models/{id:path}", methods=("GET",), scope="read", probe=True)
        )
    # Cohere's, which its clients ask for by this number; the answer is the same.
    found += (Operation(name="rerank", path="/v2/rerank" + slash) for slash in ("", "/"))
    return tuple(found)


OPERATIONS = _operations()

# Where a backend takes each operation, below its prefix.
UPSTREAM_PATHS = {**dict(_POSTS), "rerank": "/rerank", "count": "/chat/completions/input_tokens"}
