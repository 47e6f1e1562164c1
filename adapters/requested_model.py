"""The model's name where the body has none: in a header, else in the query. A name in the body takes precedence."""

from __future__ import annotations

from urllib.parse import parse_qs

import msgspec

from hostler.adapters import json_body
from hostler.adapters.base import Incoming
from hostler.adapters.errors import BadRequest

#: In this order; the first one that is not empty counts.
HEADERS = ("x-hostler-model", "x-model")
PARAMETER = "model"

_MAX_PARAMETERS = 64


def model_outside_body(incoming: Incoming) -> str | None:
    """The name in the headers or the query. Raises `BadRequest` for a query that is ambiguous."""
    for header in HEADERS:
        name = incoming.headers.get(header, "").strip()
        if name:
            return name
    return query_parameter(incoming.query, PARAMETER) if incoming.query else None


def query_parameter(query: str, name: str) -> str | None:
    """A parameter of the query; `None` if it is absent or empty. Raises `BadRequest` if it comes twice."""
    try:
        values = parse_qs(query, max_num_fields=_MAX_PARAMETERS).get(name, [])
    except ValueError:
        raise BadRequest(f"The query has more than {_MAX_PARAMETERS} parameters.") from None
    if len(values) > 1:
        raise BadRequest(f"The query has `{name}` more than once.", param=name)
    return values[0] if values else None


def with_model_in_body(incoming: Incoming) -> bytes:
    """The body, with the name from the headers or the query filled in if it is a JSON object without one."""
    name = model_outside_body(incoming)
    if name is None or not incoming.body.lstrip(b" \t\r\n").startswith(b"{"):
        return incoming.body
    members = json_body.JsonBody(incoming.body).members
    if any(bytes(members.get(key, msgspec.Raw(b"null"))) not in (b'""', b"null") for key in ("model", "name")):
        return incoming.body
    return json_body.patch(incoming.body, {"model": msgspec.json.encode(name)}, members)
