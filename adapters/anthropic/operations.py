"""The routes of Anthropic's protocol, and the paths at backends."""

from __future__ import annotations

from hostler.adapters.base import Operation

#: Every official client sends this header. It distinguishes the model lists from OpenAI's, which have the same paths.
HEADER = "anthropic-version"

#: The version of the protocol, where no client names one.
VERSION = (HEADER, "2023-06-01")

#: Headers that a backend of this protocol needs: they determine the form of request and response.
FORWARDED_HEADERS = (HEADER, "anthropic-beta")

MESSAGES = "messages"
COUNT = "count_tokens"
MODELS = "models"
MODEL = "model"

PATHS = {MESSAGES: "/v1/messages", COUNT: "/v1/messages/count_tokens"}


def _operations() -> tuple[Operation, ...]:
    operations = [Operation(name=name, path=path + slash) for name, path in PATHS.items() for slash in ("", "/")]
    for name, path in ((MODELS, "/v1/models"), (MODELS, "/v1/models/"), (MODEL, "/v1/models/{id:path}")):
        operations.append(
            Operation(name=name, path=path, methods=("GET",), header=HEADER, scope="read", model_info=True)
        )
    return tuple(operations)


OPERATIONS = _operations()
