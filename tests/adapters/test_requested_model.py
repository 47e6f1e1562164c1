"""The model in a header or the query, for bodies that name none."""

from __future__ import annotations

import pytest

from hostler.adapters.base import Incoming
from hostler.adapters.errors import BadRequest
from hostler.adapters.requested_model import model_outside_body, with_model_in_body


def incoming(body: bytes = b"", *, query: str = "", **headers: str) -> Incoming:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Incoming(method="POST", path="/", body=body, query=query, headers=named)


def test_a_header_takes_precedence_over_the_query() -> None:
    assert model_outside_body(incoming(query="model=b", x_model="a")) == "a"
    assert model_outside_body(incoming(x_hostler_model="a", x_model="b")) == "a"
    assert model_outside_body(incoming(query="model=org%2Fb")) == "org/b"
    assert model_outside_body(incoming(query="model=", x_model=" ")) is None


@pytest.mark.parametrize("query", ["model=a&model=b", "&".join(f"a{i}=1" for i in range(100))])
def test_an_ambiguous_query_is_rejected(query: str) -> None:
    with pytest.raises(BadRequest, match="query"):
        model_outside_body(incoming(query=query))


@pytest.mark.parametrize(
    ("body", "filled"),
    [
        (b'{"messages":[]}', b'{"model":"a","messages":[]}'),
        (b'{"model":null}', b'{"model":"a"}'),
        (b'{"model":"b"}', b'{"model":"b"}'),
        (b'{"name":"b"}', b'{"name":"b"}'),
        (b"[1]", b"[1]"),
    ],
)
def test_a_body_without_a_model_gets_the_one_outside(body: bytes, filled: bytes) -> None:
    assert with_model_in_body(incoming(body, x_model="a")) == filled
    assert with_model_in_body(incoming(body)) == body
