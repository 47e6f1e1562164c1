"""The routes of OpenAI's protocol, and the paths at backends."""

from __future__ import annotations

from hostler.adapters.base import Operation

# Every path exists with /v1 and without, with a trailing slash and without.
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

# What is stored of the responses API.
_STORED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("response", "/responses/{id}", ("GET", "DELETE")),
    ("input_items", "/responses/{id}/input_items", ("GET",)),
)

# Without /v1 these paths are llama.cpp's own, answered in its native form.
_ONLY_V1 = frozenset({"completions", "embeddings", "rerank"})

#: Operations whose body is a form with files instead of JSON.
FORMS = frozenset({"transcriptions", "translations", "image_edits", "image_variations"})


def _operations() -> tuple[Operation, ...]:
    operations: list[Operation] = []
    for prefix in ("/v1", ""):
        for name, path in (*_POSTS, ("rerank", "/rerank")):
            if prefix or name not in _ONLY_V1:
                operations += (
                    Operation(name=name, path=prefix + path + slash, stores=name == "responses") for slash in ("", "/")
                )
        for slash in ("", "/"):
            for name, path, methods in _STORED:
                operations.append(
                    Operation(
                        name=name,
                        path=prefix + path + slash,
                        methods=methods,
                        writes=True,
                        media_types=("",),
                        stores=True,
                    )
                )
        # The list before the single model, whose pattern would take the list's trailing slash for an empty name.
        operations += (
            Operation(name="models", path=prefix + "/models" + slash, methods=("GET",), scope="read", model_info=True)
            for slash in ("", "/")
        )
        operations.append(
            Operation(name="model", path=prefix + "/models/{id:path}", methods=("GET",), scope="read", model_info=True)
        )
    # Cohere's clients ask for version 2; the answer is the same.
    operations += (Operation(name="rerank", path="/v2/rerank" + slash) for slash in ("", "/"))
    return tuple(operations)


OPERATIONS = _operations()

#: The path of each operation at a backend, below its prefix.
UPSTREAM_PATHS = {**dict(_POSTS), "rerank": "/rerank", "count": "/chat/completions/input_tokens"}
