"""The `cluster:` section of the configuration file, and the addresses of its store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from hostler.gateway.wake_settings import WakeSettings

#: What to do where the client library is not installed.
MISSING_CLUSTER_EXTRA = "cluster.store requires an extra; run `pip install 'hostler[cluster]'`"

#: The default ports of Valkey and Redis, and of their sentinels.
_PORT, _SENTINEL_PORT = 6379, 26379
_FORMS = "redis://HOST, rediss://HOST, unix:///PATH or redis+sentinel://HOST,HOST/SERVICE"
_ACCOUNT_OPTIONS = frozenset({"db", "username", "password"})
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gateways and hosts of an installation have in common: its name, the store, and the token of its members."""

    store: str
    """The Valkey or Redis server: `redis://`, `rediss://` (TLS), `unix://`, or its sentinels,
    `redis+sentinel://HOST,HOST/SERVICE`."""
    name: str = "hostler"
    """The installation's name. Several installations can share a store under different names."""
    token: str | None = None
    """The token of all members. Gateways with another one, or none, do not belong to the cluster."""
    token_file: str | None = None
    """File that contains the token of all members."""
    member: str | None = None
    """This gateway's name, as the others show it, or that of the host of a supervisor. Default: the machine's name."""
    history: bool = True
    """Keep past requests (times, names, figures; no contents) in the store, so that every gateway shows those of all."""
    url: str | None = None
    """Supervisors: the URL under which gateways of the cluster reach this host. Default: the address of
    `supervisor.listen`, or, if that is `0.0.0.0` or `[::]`, the one from which this machine reaches the store."""
    gateway_url: str | None = None
    """Gateways: the URL under which the other gateways reach this one, to pass on requests for what it alone has. Default: the
    first address of `gateway.listen` that others reach."""
    accept: tuple[Literal["profiles", "keys"], ...] = ("profiles", "keys")
    """What this member takes of the configuration that members share: profiles for hosts, keys for gateways. An empty
    list: nothing."""
    wake: WakeSettings | None = None
    """Supervisors: how gateways of the cluster wake this machine. Default: with `supervisor.sleep`, by the network card of
    its address, else not at all."""

    @property
    def shown_store(self) -> str:
        """The store's URL without its user, password and options."""
        scheme, separator, rest = self.store.partition("://")
        return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


def without_secrets(environ: Mapping[str, str], settings: ClusterSettings | None) -> Mapping[str, str]:
    """The environment of engines: without the cluster's token and the store's passwords, whatever their variables are called."""
    if settings is None:
        return environ
    account, query = urlsplit(settings.store).netloc.rpartition("@")[0], parse_qs(urlsplit(settings.store).query)
    password = account.partition(":")[2]
    secrets = {settings.token, settings.store if settings.store != settings.shown_store else None}
    secrets |= {password, unquote(password), *query.get("password", ()), *query.get("sentinel_password", ())}
    return {name: value for name, value in environ.items() if not value or value not in secrets}


class StoreAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the store is: a `url` that the client library understands, or `sentinels` that know where `service` is.

    `username` and `password` are those of the service, `sentinel_username` and `sentinel_password` those of its sentinels.
    """

    url: str | None = None
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    database: int = 0
    tls: bool = False
    ca_file: str | None = None
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @property
    def place(self) -> tuple[str, int] | None:
        """A host and port of the store, or of its first sentinel; `None` for a Unix socket."""
        if self.sentinels:
            return self.sentinels[0]
        url = urlsplit(self.url or "")
        return None if url.hostname is None else (url.hostname, url.port or _PORT)


def store_address(text: str) -> StoreAddress:
    """The address that a store's URL names. Raises `ValueError`, without the password in its message."""
    try:
        url = urlsplit(text)
    except ValueError:
        raise ValueError(f"is not a URL; write {_FORMS}") from None
    if url.fragment:
        raise ValueError("has a `#`; write it as %23 in a password")
    match url.scheme:
        case "redis" | "rediss":
            _host_and_port(url.netloc.rpartition("@")[2], _PORT)
            _database(url.path.removeprefix("/"))
            _check_options(url.query, _ACCOUNT_OPTIONS | (_TLS_OPTIONS if url.scheme == "rediss" else frozenset()))
            return StoreAddress(url=text)
        case "unix":
            if not url.path.startswith("/"):
                raise ValueError("does not name a socket; write its path in full, as in unix:///run/valkey/valkey.sock")
            _check_options(url.query, _ACCOUNT_OPTIONS)
            return StoreAddress(url=text)
        case "redis+sentinel" | "rediss+sentinel":
            return _sentinels(text)
    raise ValueError(f"is not the URL of a store; write {_FORMS}")


def _sentinels(text: str) -> StoreAddress:
    url = urlsplit(text)
    account, _, hosts = url.netloc.rpartition("@")
    user, _, password = account.partition(":")
    service, _, database = url.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError(
            "names no service; write redis+sentinel://HOST,HOST/SERVICE, as in the sentinels' configuration"
        )
    options = _check_options(url.query, {"sentinel_username", "sentinel_password", "ssl_ca_certs"})
    return StoreAddress(
        sentinels=tuple(_host_and_port(each, _SENTINEL_PORT) for each in hosts.split(",")),
        service=unquote(service),
        database=_database(database),
        tls=url.scheme == "rediss+sentinel",
        ca_file=options.get("ssl_ca_certs"),
        username=unquote(user) or None,
        password=unquote(password) or None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _check_options(query: str, known: Set[str]) -> dict[str, str]:
    """The options of a URL. The client library would not accept others, or let them replace its time limits."""
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"has an unknown option, {unknown[0]}; known are {', '.join(sorted(known))}")
    _database(options.get("db", ""))
    return options


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    try:
        place = urlsplit(f"//{text}")
        host, port = place.hostname, place.port
    except ValueError:
        # The text may be the beginning of a password.
        raise ValueError("has no valid port; in a password, write `/` as %2F and `?` as %3F") from None
    if not host:
        raise ValueError(f"names no host; write {_FORMS}")
    return host, default if port is None else port


def _database(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError("has a database that is not a number; databases are numbers, 0 by default")
    return int(text or 0)


def is_host_url(url: str) -> bool:
    """Whether a gateway would connect to a host there: an address of HTTP and nothing else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and parts.username is None
        and parts.path in ("", "/")
        and not (parts.query or parts.fragment)
    )


def cluster_mistakes(settings: ClusterSettings) -> Iterator[tuple[str, str]]:
    """The keys of values that cannot be used, and why."""
    try:
        store_address(settings.store)
    except ValueError as error:
        yield "store", str(error)
    if not _NAME.fullmatch(settings.name):
        yield "name", f"{settings.name!r} must consist of letters, digits, `-`, `_` and `.`, at most 64"
    if settings.member is not None and not (settings.member.strip() and settings.member.isprintable()):
        yield "member", "must be a name in plain text"
    for key, url in (("url", settings.url), ("gateway_url", settings.gateway_url)):
        if url is not None and not is_host_url(url):
            yield key, f"{url!r} must be http:// or https:// with a host and a port, and nothing else"
