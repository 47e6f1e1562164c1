"""Where the gateway may listen without API keys."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hostler.gateway.auth import keys
from hostler.gateway.auth.bind_policy import (
    addresses,
    bound_addresses,
    is_loopback,
    key_mistakes,
    keys_in_force,
    refuse_beyond_loopback,
)
from hostler.gateway.config import ConfigError
from hostler.gateway.gateway_settings import GatewaySettings
from hostler.gateway.settings import Settings


def settings(listen: str = "127.0.0.1:0", api_keys_file: Path | None = None) -> Settings:
    return Settings(
        gateway=GatewaySettings(listen=(listen,), api_keys_file=None if api_keys_file is None else str(api_keys_file))
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("127.0.0.1.evil.example", False),
        ("/run/hostler.sock", True),
        ("", False),
    ],
)
def test_a_loopback_address_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_addresses_are_those_of_the_configuration_and_bound_addresses_those_of_sockets() -> None:
    assert addresses(settings("127.0.0.1:8000")) == [("127.0.0.1", 8000)]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert bound_addresses([sock]) == [sock.getsockname()]


def test_a_unix_socket_has_a_path_for_an_address(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert addresses(settings(f"unix:{path}")) == [(path, 0)]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        assert bound_addresses([sock]) == [(path, 0)]


def test_the_first_address_beyond_loopback_is_refused(tmp_path: Path) -> None:
    refuse_beyond_loopback([("127.0.0.1", 1), ("::1", 2)], tmp_path)
    with pytest.raises(ConfigError, match=r"refusing to listen on 10\.0\.0\.1:3 without API keys"):
        refuse_beyond_loopback([("127.0.0.1", 1), ("10.0.0.1", 3), ("0.0.0.0", 4)], tmp_path)


def test_any_address_and_any_socket_is_accepted_with_keys(tmp_path: Path) -> None:
    keys.add(tmp_path / "keys", "bob", ["infer"])
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        assert keys_in_force(settings("0.0.0.0:0", tmp_path / "keys"), [sock])


def test_a_socket_beyond_loopback_is_refused_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keys_in_force(settings()) is None
    with socket.socket() as sock, pytest.raises(ConfigError, match="without API keys"):
        sock.bind(("0.0.0.0", 0))
        keys_in_force(settings(), [sock])


def test_a_configured_key_file_must_exist_and_contain_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        keys_in_force(settings(api_keys_file=tmp_path / "keys"))
    (tmp_path / "keys").touch(mode=0o600)
    with pytest.raises(ConfigError, match="contains no keys"):
        keys_in_force(settings(api_keys_file=tmp_path / "keys"))


def test_a_key_in_the_configuration_is_enough(tmp_path: Path) -> None:
    gateway = GatewaySettings(listen=("0.0.0.0:0",), api_keys=("k",), api_keys_file=str(tmp_path / "none"))
    assert list(key_mistakes(Settings(gateway=gateway))) == []
    assert keys_in_force(Settings(gateway=gateway))
