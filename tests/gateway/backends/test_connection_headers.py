"""Which headers of backends reach clients."""

from __future__ import annotations

import pytest

from hostler.gateway.backends.connection_headers import passes


@pytest.mark.parametrize(
    "name",
    ["connection", "transfer-encoding", "proxy-authentication-info", "set-cookie2", "server", "x-accel-buffering"],
)
def test_what_is_said_of_a_connection_or_to_the_gateway_ends_there(name: str) -> None:
    assert not passes(name)


@pytest.mark.parametrize(
    "name", ["content-type", "x-request-id", "retry-after", "openai-processing-ms", "trailers-of-mine"]
)
def test_everything_else_passes(name: str) -> None:
    assert passes(name)
