"""Requests that come through a reverse proxy: who the client is, and below which path the proxy serves the gateway."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import quote

from hostler.gateway.asgi import ASGIApp, Receive, Scope, Send
from hostler.gateway.network_rules import UNIX

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ReverseProxyMiddleware:
    """Sets the scope's `client`, `scheme` and `root_path` for everything inside. Left out where neither is configured.

    `trusted` are networks, and `UNIX`: headers from elsewhere are ignored. The client is the last address of
    `X-Forwarded-For` that is not trusted itself: those before it are the client's own claims. A proxy may or may not
    strip `root_path`.
    """

    def __init__(self, app: ASGIApp, *, trusted: Iterable[str], root_path: str = "") -> None:
        names = list(trusted)
        self.app = app
        self._networks = [ipaddress.ip_network(name, strict=False) for name in names if name != UNIX]
        self._unix = UNIX in names
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = dict(scope)
            self._set_client(scope)
            if self._root:
                self._set_root(scope)
        await self.app(scope, receive, send)

    def _set_client(self, scope: Scope) -> None:
        peer = scope.get("client")
        if not (self._is_trusted(peer[0]) if peer and peer[0] else self._unix):
            return
        forwarded = _values(scope, b"x-forwarded-for")
        client = next((each for each in reversed(forwarded) if not self._is_trusted(each)), "")
        address = _address(client or next(iter(forwarded), ""))
        if address is not None:
            scope["client"] = (str(address), 0)
        scheme = next(reversed(_values(scope, b"x-forwarded-proto")), "").lower()
        if scheme in ("http", "https"):
            scope["scheme"] = scheme

    def _is_trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._networks)

    def _set_root(self, scope: Scope) -> None:
        path: str = scope["path"]
        raw = scope.get("raw_path") or quote(path).encode()
        if path == self._root:
            path, raw = f"{path}/", raw + b"/"
        elif not path.startswith(f"{self._root}/"):
            path, raw = self._root + path, self._root.encode() + raw
        scope.update(root_path=self._root, path=path, raw_path=raw)


def _values(scope: Scope, wanted: bytes) -> list[str]:
    """The entries of a header that is a list, of all its lines."""
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
    return [entry.strip() for line in lines for entry in line.split(",")]


def _address(text: str) -> Address | None:
    """An address, with or without a port: some proxies add it."""
    host = text[1:].partition("]")[0] if text.startswith("[") else text
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
