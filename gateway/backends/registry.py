"""Creates the backends from the settings: protocol, transport, endpoint and headers of each, and their order."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable
from functools import partial
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

import msgspec

from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Upstream
from hostler.adapters.errors import BackendUnavailable
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.lmstudio.upstream import LMStudioUpstream
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.gateway.backend_settings import BackendSettings, BackendTimeouts
from hostler.gateway.backends.transport import (
    HEALTH_PATHS,
    Backend,
    Endpoint,
    EndpointOptions,
    Timeouts,
    TlsOptions,
    Transport,
    with_query,
)
from hostler.gateway.config import ConfigError, secret
from hostler.gateway.settings import LOCAL, Settings
from hostler.supervisor.contract import Supervisor

logger = logging.getLogger(__name__)

#: The path of OpenAI's API where a URL has none.
_USUAL = "/v1"
#: Words in the names of headers and parameters that hold a secret.
_SECRET_WORDS = ("authorization", "cookie", "key", "secret", "token", "password", "signature")


def chain_order(settings: Settings, local: Supervisor | None) -> tuple[str, ...]:
    """The order in which backends are tried: `gateway.chain`, else this process's own supervisor, then the file's
    order.

    Raises `ConfigError` for a chain that names `local` without one.
    """
    named = settings.gateway.chain
    own = [LOCAL] if local is not None else []
    if named is None:
        return (*own, *settings.backends)
    if LOCAL in named and not own:
        raise ConfigError(f"gateway.chain names {LOCAL!r}, but only `hostler up` runs a supervisor of its own")
    return tuple(named) if LOCAL in named else (*own, *named)


def remote_transport(lan: Transport, settings: Settings) -> Transport:
    """The transport for remote backends and those behind proxies; `lan` if there are none.

    A backend that cannot be reached as the settings and the environment say is logged, and keeps only itself from
    serving.
    """
    reached = {
        name: backend
        for name, backend in settings.backends.items()
        if backend.kind != "supervisor" and not backend.is_direct
    }
    if not reached:
        return lan
    from hostler.gateway.backends.httpx_transport import HttpxTransport

    remote = HttpxTransport()
    for name, backend in reached.items():
        try:
            remote.client(build_endpoint(name, backend))  # loads the certificates now rather than in a request
        except BackendUnavailable as error:
            logger.warning("backends.%s: %s", name, error.log_message)
    return remote


def build_backends(
    settings: Settings, supervisors: Iterable[str], lan: Transport, remote: Transport
) -> dict[str, Backend]:
    """All backends by name: the hosts of these supervisors, and the ones without. Raises `ConfigError`."""
    engine = _engine(settings)
    timeouts = Timeouts(**msgspec.structs.asdict(settings.gateway.timeouts))
    own = {name: _timeouts(timeouts, backend.timeouts) for name, backend in settings.backends.items()}
    backends = {name: host_backend(settings, name, lan) for name in supervisors}
    for name, backend in settings.backends.items():
        if backend.kind != "supervisor":
            prefix = _prefix(urlsplit(backend.url))
            built = Backend(
                name=name,
                upstream=engine if backend.kind == "llamacpp" else _UPSTREAMS[backend.kind](),
                transport=lan if backend.is_direct else remote,
                timeouts=own[name],
                endpoint=build_endpoint(name, backend),
                folds=backend.kind == "llamacpp",
                headers=_headers(name, backend),
                forward_headers=backend.forward_headers,
                local=backend.is_local,
                health_path=HEALTH_PATHS[backend.kind],
            )
            if backend.kind == "openai":
                built = with_prefix(built, prefix, supposed=not urlsplit(backend.url).path.rstrip("/"))
            backends[name] = built
    return backends


def host_backend(settings: Settings, name: str, lan: Transport) -> Backend:
    """The engines of a host. Those that join by themselves are in no settings, and have the usual time limits."""
    entry = settings.backends.get(name)
    timeouts = Timeouts(**msgspec.structs.asdict(settings.gateway.timeouts))
    return Backend(
        name=name,
        upstream=_engine(settings),
        transport=lan,
        timeouts=_timeouts(timeouts, None if entry is None else entry.timeouts),
        folds=True,
        local=True,
        engines={"openai": OpenAIUpstream(), "ollama": OllamaUpstream(), "anthropic": AnthropicUpstream()},
    )


def _engine(settings: Settings) -> Upstream:
    return LlamaCppUpstream(progress=settings.gateway.switching.progress != "off")


def with_prefix(backend: Backend, prefix: str, *, supposed: bool = False) -> Backend:
    """A backend with OpenAI's protocol whose routes are below `prefix`; `supposed`: the URL does not say so."""
    others = tuple(other for other in (_USUAL, "") if other != prefix) if supposed else ()
    return msgspec.structs.replace(
        backend,
        upstream=OpenAIUpstream(prefix=prefix, other_prefixes=others),
        health_path=prefix + HEALTH_PATHS["openai"],
    )


_UPSTREAMS: dict[str, Callable[[], Upstream]] = {
    "openai": OpenAIUpstream,
    "ollama": OllamaUpstream,
    "lmstudio": partial(LMStudioUpstream, prefix=_USUAL),
    "anthropic": AnthropicUpstream,
}


def _timeouts(usual: Timeouts, own: BackendTimeouts | None) -> Timeouts:
    """The usual limits, except for those that the backend has of its own."""
    if own is None:
        return usual
    given = {key: value for key, value in msgspec.structs.asdict(own).items() if value is not None}
    return msgspec.structs.replace(usual, **given)


def _prefix(url: SplitResult) -> str:
    """The path in front of OpenAI's routes: the URL's own, of which `/v1` is kept apart, or `/v1` where it has none."""
    path = url.path.rstrip("/")
    return _USUAL if not path or path.endswith(_USUAL) else ""


def _headers(name: str, backend: BackendSettings) -> tuple[tuple[str, str], ...]:
    """The headers of every request to a backend without a supervisor, which requests may replace."""
    headers = []
    if backend.referer is not None:
        headers.append(("HTTP-Referer", backend.referer))
    if backend.title is not None:
        headers.append(("X-Title", backend.title))
    if backend.kind == "anthropic" and (key := _key(name, backend)) is not None:
        headers.append(("x-api-key", key))
    return tuple(headers)


def _key(name: str, backend: BackendSettings) -> str | None:
    return secret(backend.api_key, backend.api_key_file, f"backends.{name}.api_key_file")


def build_endpoint(name: str, backend: BackendSettings) -> Endpoint:
    """Where a backend without a supervisor listens. Requests carry their own `/v1`, so one at the end of the URL is
    dropped. Raises `ConfigError`."""
    url = urlsplit(backend.url)
    if not url.hostname:
        raise ConfigError(f"backends.{name}.url: {backend.url!r} has no host name")
    tls = url.scheme == "https"
    key = _key(name, backend)
    is_anthropic = backend.kind == "anthropic"  # its key is sent in a header of its own
    return Endpoint(
        host=url.hostname,
        port=url.port or (443 if tls else 80),
        name=name,
        key=None if is_anthropic else key,
        tls=tls,
        base_path=url.path.rstrip("/").removesuffix(_USUAL),
        options=_options(backend, url, (key,) if is_anthropic and key is not None else ()),
    )


def _options(backend: BackendSettings, url: SplitResult, secrets: tuple[str, ...]) -> EndpointOptions | None:
    """`None` if nothing is special about the connection."""
    headers = dict(backend.headers)
    if url.username is not None and not any(header.lower() == "authorization" for header in headers):
        user, password = unquote(url.username), unquote(url.password or "")
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        secrets = (*secrets, *filter(None, (password,)))
    options = EndpointOptions(
        query=with_query(url.query, urlencode(backend.query, quote_via=quote)),
        headers=tuple(headers.items()),
        tls=TlsOptions(
            ca_file=backend.ca_file,
            insecure=backend.insecure,
            client_cert_file=backend.client_cert_file,
            client_key_file=backend.client_key_file,
        ),
        proxy=backend.proxy_setting,
        secrets=(
            *secrets,
            *(
                part
                for values in (headers, backend.query)
                for name, value in values.items()
                if _is_secret(name)
                for part in {value, value.rpartition(" ")[2]}
            ),
        ),
    )
    return None if options == _DEFAULTS[backend.is_direct] else options


#: The options of a direct connection, and of one that heeds the proxies of the environment.
_DEFAULTS = {True: EndpointOptions(), False: EndpointOptions(proxy="environment")}


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)
