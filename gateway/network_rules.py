"""What may stand in the settings of the gateway's network side, beyond their types. Each check returns a mistake or `None`."""

from __future__ import annotations

import ipaddress
import re

#: The entry of `trusted_proxies` for all connections to a Unix socket.
UNIX = "unix"

#: A host name or address as in the `Host` header, and a web page's origin as in the `Origin` header.
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*|[0-9A-Fa-f:]+:[0-9A-Fa-f:]*|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")
#: A name with wildcards: the last label has none, or the pattern would match any domain.
_HOST_PATTERN = re.compile(r"(\*|[A-Za-z0-9_*-]+)(\.[A-Za-z0-9_*-]+)*\.[A-Za-z0-9_-]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*]*|null")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")


def host_mistake(text: str) -> str | None:
    """For entries of `allowed_hosts`."""
    if _HOST.fullmatch(text) or _HOST_PATTERN.fullmatch(text):
        return None
    if "*" in text:
        return f"{text!r} would allow any domain; name one, e.g. *.home.example"
    return f"{text!r} is not a host name; list the names that clients use, e.g. llm.lan"


def origin_mistake(text: str) -> str | None:
    """For entries of `cors_origins`."""
    if _ORIGIN.fullmatch(text):
        return None
    return f"{text!r} is not an origin; list the web pages' origins, e.g. https://chat.lan"


def proxy_mistake(text: str) -> str | None:
    """For entries of `trusted_proxies`."""
    if text == UNIX:
        return None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is not an address; list the proxies' addresses, e.g. 127.0.0.1 or 10.0.0.0/8, or unix"
    if network.prefixlen == 0:
        return f"{text!r} would let every client choose its own address; list the proxies' addresses"
    return None


def root_path_mistake(text: str) -> str | None:
    """For `root_path`."""
    if _ROOT_PATH.fullmatch(text):
        return None
    return f"{text!r} is not a path; write it with a slash at its start and none at its end, e.g. /llm"
