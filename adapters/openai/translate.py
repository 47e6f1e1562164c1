"""Between OpenAI's JSON and the canonical requests, for requests that cross from one protocol to another."""

from __future__ import annotations

import msgspec

from hostler.adapters.canonical import Request
from hostler.adapters.document import Document
from hostler.adapters.errors import BadRequest

JSON_OBJECT = msgspec.Raw(b'"json"')


def schema(document: Document) -> msgspec.Raw | None:
    return None


def logprobs(document: Document) -> int | None:
    return None


def expand(request: Request) -> Request:
    raise BadRequest("not yet")


def operation(request: Request) -> str:
    raise BadRequest("not yet")


def body(request: Request, *, model: str, stream: bool) -> tuple[str, bytes]:
    raise BadRequest("not yet")
