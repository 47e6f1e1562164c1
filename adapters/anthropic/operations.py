"""What Anthropic clients can ask and where: the operations as one table."""

from __future__ import annotations

from hostler.adapters.base import Operation

# The header that every official client sends. The paths of the model list are OpenAI's, too: it tells them apart.
HEADER = "anthropic-version"

# What else a backend of this protocol must know of a request, beside its body: the form of both.
FORWARDED = (HEADER, "anthropic-beta")

MESSAGES = "messages"
COUNT = "count_tokens"
MODELS = "models"
MODEL = "model"

PATHS = {MESSAGES: "/v1/messages", COUNT: "/v1/messages/count_tokens"}


def _operations() -> tuple[Operation, ...]:
    found = [Operation(name=name, path=path + slash) for name, path in PATHS.items() for slash in ("", "/")]
    for name, path in ((MODELS, "/v1/models"), (MODELS, "/v1/models/"), (MODEL, "/v1/models/{id:path}")):
        found.append(Operation(name=name, path=path, methods=("GET",), header=HEADER, scope="read", probe=True))
    return tuple(found)


OPERATIONS = _operations()
