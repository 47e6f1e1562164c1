"""The model's name where a body names none: in a header, else in the query. A name in the body always counts more."""

from __future__ import annotations

from urllib.parse import parse_qs

import msgspec

from hostler.adapters import json_body as document
from hostler.adapters.base import Incoming
from hostler.adapters.errors import BadRequest

#: Where it is looked for, the first one that says something counting.
HEADERS = ("x-hostler-model", "x-model")
PARAMETER = "model"

_MAX_PARAMETERS = 64


def elsewhere(incoming: Incoming) -> str | None:
    """The name that stands outside of the body. Raises `BadRequest` for a query that is ambiguous."""
    for header in HEADERS:
        name = incoming.headers.get(header, "").strip()
        if name:
            return name
    return parameter(incoming.query, PARAMETER) if incoming.query else None


def parameter(query: str, name: str) -> str | None:
    """A parameter of the query; `None` if it is absent or empty. Raises `BadRequest` if it comes twice."""
    try:
        values = parse_qs(query, max_num_fields=_MAX_PARAMETERS).get(name, [])
    except ValueError:
        raise BadRequest(f"The query has more than {_MAX_PARAMETERS} parameters.") from None
    if len(values) > 1:
        raise BadRequest(f"The query has `{name}` more than once.", param=name)
    return values[0] if values else None


def filled(incoming: Incoming) -> bytes:
    """The body, with the model's name from elsewhere if it is a JSON object that names none, for adapters that need it there."""
    name = elsewhere(incoming)
    if name is None or not incoming.body.lstrip(b" \t\r\n").startswith(b"{"):
        return incoming.body
    members = document.JsonBody(incoming.body).members
    if any(bytes(members.get(each, msgspec.Raw(b"null"))) not in (b'""', b"null") for each in ("model", "name")):
        return incoming.body
    return document.patch(incoming.body, {"model": msgspec.json.encode(name)}, members)
