"""The time limits of requests to backends, and their paths there."""

from __future__ import annotations

import pytest

from hostler.gateway.backends.transport import Endpoint, EndpointOptions, Timeouts, with_query
from hostler.supervisor.contract import AnswerLimits


def test_a_profiles_limits_replace_only_those_that_it_has() -> None:
    timeouts = Timeouts(connect_s=1.0, first_byte_s=2.0, between_bytes_s=3.0, first_token_s=4.0)
    assert timeouts.limited(AnswerLimits(max_answer_s=9.0)) == timeouts
    limited = timeouts.limited(AnswerLimits(between_bytes_s=30.0))
    assert limited == Timeouts(connect_s=1.0, first_byte_s=2.0, between_bytes_s=30.0, first_token_s=4.0)
    assert timeouts.limited(AnswerLimits(first_byte_s=20.0)).first_byte_s == 20.0


@pytest.mark.parametrize(
    ("query", "own", "sent"),
    [
        ("", "a=1", "a=1"), ("a=1", "", "a=1"), ("b=2", "a=1", "b=2&a=1"), ("a=2&b=2&a=3", "a=1", "b=2&a=1"),
        ("api%2Dversion=old&x", "api-version=new", "x&api-version=new"), ("a", "a=1", "a=1"), ("aa=1", "a=1", "aa=1&a=1"),
    ],
)  # fmt: skip
def test_the_backends_own_parameters_replace_those_of_a_request(query: str, own: str, sent: str) -> None:
    endpoint = Endpoint(host="h", port=80, name="b", base_path="/v4", options=EndpointOptions(query=own))
    assert endpoint.target(f"/chat?{query}" if query else "/chat") == f"/v4/chat?{sent}"
    assert with_query(query, own) == sent
