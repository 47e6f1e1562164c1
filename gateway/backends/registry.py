"""The backends that requests can be sent to, made of the settings: each with its protocol, its way there, its address
and what every request to it says beside the body; and the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Upstream
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.gateway.backends.base import Backend, Endpoint, Timeouts, Transport
from hostler.gateway.config import LOCAL, BackendSettings, Settings, SettingsError, secret
from hostler.supervisor.contract import Supervisor


def order_of(settings: Settings, local: Supervisor | None) -> tuple[str, ...]:
    """The order in which backends are tried: as configured, else this process's own first, then as they stand."""
    named = settings.gateway.chain
    own = [LOCAL] if local is not None else []
    if named is None:
        return (*own, *settings.backends)
    if LOCAL in named and not own:
        raise SettingsError(f"gateway.chain names {LOCAL!r}, but only `hostler up` runs a supervisor of its own")
    return tuple(named) if LOCAL in named else (*own, *named)


def clouds_or(lan: Transport, settings: Settings) -> Transport:
    """The way to clouds; the one to machines in the house where there are no clouds."""
    if all(backend.in_the_house for backend in settings.backends.values()):
        return lan
    from hostler.gateway.backends.httpx_transport import CloudTransport

    clouds = CloudTransport()
    clouds.client()  # loads certificates, which nobody should wait for later
    return clouds


def backends_of(settings: Settings, supervisors: Iterable[str], lan: Transport, cloud: Transport) -> dict[str, Backend]:
    """All of them by name: the hosts of these supervisors, and the plain ones. Raises `SettingsError`."""
    engine = LlamaCppUpstream()
    upstreams: dict[str, Upstream] = {
        "llamacpp": engine,
        "openai": OpenAIUpstream(),
        "ollama": OllamaUpstream(),
        "anthropic": AnthropicUpstream(),
    }
    timeouts = Timeouts(**msgspec.structs.asdict(settings.gateway.timeouts))
    backends = {
        name: Backend(name=name, upstream=engine, transport=lan, timeouts=timeouts, folds=True) for name in supervisors
    }
    for name, backend in settings.backends.items():
        if backend.kind != "supervisor":
            backends[name] = Backend(
                name=name,
                upstream=upstreams[backend.kind],
                transport=lan if backend.in_the_house else cloud,
                timeouts=timeouts,
                endpoint=_endpoint(name, backend),
                folds=backend.kind == "llamacpp",
                headers=_headers(name, backend),
            )
    return backends


def _headers(name: str, backend: BackendSettings) -> tuple[tuple[str, str], ...]:
    """What every request to a plain backend says beside its body."""
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
    """Where a plain backend listens. Requests carry their own `/v1`, so one at the end of the address is left out."""
    url = urlsplit(backend.url)
    if not url.hostname:
        raise SettingsError(f"backends.{name}.url: {backend.url!r} names no host")
    tls = url.scheme == "https"
    return Endpoint(
        host=url.hostname,
        port=url.port or (443 if tls else 80),
        name=name,
        key=None if backend.kind == "anthropic" else _key(name, backend),  # Anthropic's goes into a header of its own
        tls=tls,
        base_path=url.path.rstrip("/").removesuffix("/v1"),
    )
