"""Addresses of supervisors on a Unix socket."""

from __future__ import annotations

import pytest

from hostler.supervisor.socket_url import socket_path


@pytest.mark.parametrize(
    ("url", "path"),
    [("unix:/run/hostler/s", "/run/hostler/s"), ("http://127.0.0.1:8080", None), ("https://unix:1", None)],
)
def test_the_path_of_a_socket_is_read(url: str, path: str | None) -> None:
    assert socket_path(url) == path
