"""Where the gateway listens, and that it never listens beyond loopback without API keys."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from hostler.gateway.auth import keys as key_file
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.config import ConfigError
from hostler.gateway.settings import Settings, parse_address
from hostler.gateway.shared_files import shared_file
from hostler.profiles.file_reading import home_path


def addresses(settings: Settings) -> list[tuple[str, int]]:
    """The configured addresses."""
    return [parse_address(text) for text in settings.gateway.listen]


def bound_addresses(sockets: Iterable[socket.socket]) -> list[tuple[str, int]]:
    """The addresses of sockets: a socket unit may use others than the configuration. Of a Unix socket its path, and 0."""
    names = [each.getsockname() for each in sockets]
    return [(name, 0) if isinstance(name, str) else (name[0], name[1]) for name in names]


def keys_in_force(settings: Settings, sockets: Iterable[socket.socket] = ()) -> KeyRing | None:
    """The API keys, `None` if none are needed. Raises `ConfigError` for an address or socket beyond loopback without keys."""
    try:
        if keys := _key_ring(settings):
            return keys
    except key_file.KeyFileError as error:
        raise ConfigError(str(error)) from error
    if mistakes := list(key_mistakes(settings, bound_addresses(sockets))):
        raise ConfigError(*mistakes)
    return None


def keys_as_decided(settings: Settings, needed: bool) -> KeyRing | None:
    """The API keys where another process has decided whether they are needed: without any key left, nothing is admitted.
    Raises `ConfigError` for a key file that cannot be read."""
    try:
        return _key_ring(settings) if needed else None
    except key_file.KeyFileError as error:
        raise ConfigError(str(error)) from error


def key_mistakes(settings: Settings, bound: Iterable[tuple[str, int]] = ()) -> Iterator[str]:
    """What is wrong with the key file, and addresses beyond loopback without keys; `bound` besides the configured ones."""
    path, named = key_path(settings), settings.gateway.api_keys_file is not None
    try:
        if key_file.read(path) or settings.gateway.api_keys or _key_ring(settings):
            return
    except key_file.KeyFileError as error:
        yield str(error)
        return
    if named and path.exists():
        yield f"gateway.api_keys_file: {path} contains no keys; create one with `hostler keys add NAME`"
    elif named:
        yield f"gateway.api_keys_file: {path} does not exist; create a key with `hostler keys add NAME`"
    for host, port in dict.fromkeys([*addresses(settings), *bound]):
        if not is_loopback(host):
            yield without_keys(host, port, path)


def _key_ring(settings: Settings) -> KeyRing:
    return KeyRing(key_path(settings), settings.gateway.api_keys, shared=shared_file(settings.cluster, "keys"))


def key_path(settings: Settings) -> Path:
    """The key file as configured, else where it is by default."""
    named = settings.gateway.api_keys_file
    return home_path(named) if named else key_file.default_file()


def refuse_beyond_loopback(where: Iterable[tuple[str, int]], path: Path) -> None:
    """Raise `ConfigError` for the first address beyond loopback; `path` is the key file."""
    for host, port in where:
        if not is_loopback(host):
            raise ConfigError(without_keys(host, port, path))


def without_keys(host: str, port: int, path: Path) -> str:
    """Why a gateway does not listen there; `path` is the key file."""
    return (
        f"gateway.listen: refusing to listen on {host}:{port} without API keys; "
        f"create one with `hostler keys add NAME` (stored in {path}), or listen on 127.0.0.1:{port}"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, or a Unix socket by its path. IPv4-mapped IPv6 counts as IPv4."""
    if host.startswith("/"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
