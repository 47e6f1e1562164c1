"""Creates the backends from the settings: protocol, transport, endpoint and headers of each, and their order."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Upstream
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.gateway.backends.base import HEALTH_PATHS, Backend, Endpoint, Timeouts, Transport
from hostler.gateway.config import LOCAL, BackendSettings, ConfigError, Settings, secret
from hostler.supervisor.contract import Supervisor


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
    """The transport for remote backends; `lan` if there are none."""
    if all(backend.is_local for backend in settings.backends.values()):
        return lan
    from hostler.gateway.backends.httpx_transport import HttpxTransport

    remote = HttpxTransport()
    remote.client()  # loads the certificates now rather than in a request
    return remote


def build_backends(
    settings: Settings, supervisors: Iterable[str], lan: Transport, remote: Transport
) -> dict[str, Backend]:
    """All backends by name: the hosts of these supervisors, and the ones without. Raises `ConfigError`."""
    engine = LlamaCppUpstream(progress=settings.gateway.switching.progress != "off")
    upstreams: dict[str, Upstream] = {
        "llamacpp": engine,
        "openai": OpenAIUpstream(),
        "ollama": OllamaUpstream(),
        "anthropic": AnthropicUpstream(),
    }
    timeouts = Timeouts(**msgspec.structs.asdict(settings.gateway.timeouts))
    backends = {
        name: Backend(name=name, upstream=engine, transport=lan, timeouts=timeouts, folds=True, local=True)
        for name in supervisors
    }
    for name, backend in settings.backends.items():
        if backend.kind != "supervisor":
            backends[name] = Backend(
                name=name,
                upstream=upstreams[backend.kind],
                transport=lan if backend.is_local else remote,
                timeouts=timeouts,
                endpoint=_endpoint(name, backend),
                folds=backend.kind == "llamacpp",
                headers=_headers(name, backend),
                local=backend.is_local,
                health_path=HEALTH_PATHS[backend.kind],
            )
    return backends


def _headers(name: str, backend: BackendSettings) -> tuple[tuple[str, str], ...]:
    """The headers of every request to a backend without a supervisor."""
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


def _endpoint(name: str, backend: BackendSettings) -> Endpoint:
    """Where a backend without a supervisor listens. Requests carry their own `/v1`, so one at the end of the URL is
    dropped."""
    url = urlsplit(backend.url)
    if not url.hostname:
        raise ConfigError(f"backends.{name}.url: {backend.url!r} has no host name")
    tls = url.scheme == "https"
    return Endpoint(
        host=url.hostname,
        port=url.port or (443 if tls else 80),
        name=name,
        key=None if backend.kind == "anthropic" else _key(name, backend),  # Anthropic's is sent in a header of its own
        tls=tls,
        base_path=url.path.rstrip("/").removesuffix("/v1"),
    )
