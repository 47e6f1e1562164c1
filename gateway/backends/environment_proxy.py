"""The proxy that the environment names for an address. Nothing here fails: what is wrong is found when it is used."""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Mapping


def environment_proxy(
    scheme: str, host: str, port: int, proxies: Mapping[str, str] | None = None
) -> tuple[str, str] | None:
    """The proxy's URL and the variable that names it; `None` for a direct connection.

    `proxies` maps `http`, `https`, `all` and `no` to the variables' values; left out, they are the environment's, or the
    system's settings.
    """
    if proxies is None:
        proxies = urllib.request.getproxies()
    if bypasses_proxy(host, port, proxies.get("no", "")):
        return None
    for name in (scheme, "all"):
        if url := proxies.get(name, "").strip():
            return url if "://" in url else f"http://{url}", f"{name.upper()}_PROXY"
    return None


def bypasses_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Whether `NO_PROXY` lists a host: its name or a domain, its address or a network, with or without a port; `*` lists
    all."""
    host = host.lower().strip("[]").rstrip(".")
    return any(_lists(entry, host, port) for entry in no_proxy.lower().replace(",", " ").split())


def _lists(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if address is not None and (network := _network(entry)) is not None:
        return address in network
    name, separator, digits = entry.rpartition(":")
    if separator and digits.isdecimal() and (":" not in name or name.endswith("]")):
        if int(digits) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").strip(".")
    return bool(entry) and (host == entry or (address is None and host.endswith(f".{entry}")))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None
