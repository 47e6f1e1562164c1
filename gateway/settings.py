"""The configuration file as typed values. Parts get theirs through constructors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.gateway_settings import BreakerSettings, GatewaySettings
from hostler.profiles.engines import EngineEntry, Macro
from hostler.profiles.file_reading import expanded_path
from hostler.profiles.request_rules import RequestRules
from hostler.profiles.schema import ProfileEntry
from hostler.supervisor.config import SupervisorSettings

#: The name in the chain of the supervisor that runs in the gateway's own process.
LOCAL = "local"


class VariantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another name for a model, with changes of its requests."""

    model: str
    """The model that the variant stands for: a profile, an alias, or a model of a backend."""
    description: str | None = None
    """Description of the variant in lists of models. Default: the model's."""
    request: RequestRules = RequestRules()
    """Changes of all requests that use this name."""


_SCAN_SCHEMA: Mapping[str, Any] = {
    "description": "Folders whose models are profiles, too, while Hostler runs.",
    "type": "array",
    "items": {"type": "string"},
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. All sections are optional."""

    gateway: GatewaySettings = GatewaySettings()
    """The server for clients: where it listens, who may use it, and how it queues, retries and logs."""
    backends: Mapping[str, BackendSettings] = {}
    """What answers besides the models of this machine, by names of your choice: supervisors on other machines, and
    servers that speak a protocol."""
    breaker: BreakerSettings = BreakerSettings()
    """When a failing backend is left out, and for how long."""
    supervisor: SupervisorSettings = SupervisorSettings()
    """How engines are run on this machine."""
    engines: Mapping[str, EngineEntry] = {}
    """Programs that run models, besides the presets, by names of your choice."""
    macros: Mapping[str, Macro] = {}
    """Macros for all engines and profiles: what `${name}` stands for, a text or several words."""
    profiles: Annotated[
        Mapping[str, ProfileEntry], msgspec.Meta(extra_json_schema={"properties": {"scan": _SCAN_SCHEMA}})
    ] = {}
    """The models of this machine and how they are run, by the names that clients use. `scan` lists folders whose models
    are profiles, too."""
    variants: Mapping[str, VariantSettings] = {}
    """Further names for models, whose requests are changed."""
    manifest: str | None = None
    """A file with further profiles, with or without a `profiles:` key. A relative path starts at the configuration
    file. `base` may name a profile of the other file."""
    cluster: ClusterSettings | None = None
    """The store that this gateway shares with others. Left out: it works by itself."""


def parse_address(text: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or `:port` (all addresses) as host and port; of a Unix socket its path, and 0.

    Raises `ValueError`.
    """
    if text.startswith("unix:"):
        path = expanded_path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(
                f"{text!r} is not the path of a socket; write it in full, e.g. unix:/run/hostler/gateway.sock"
            )
        return str(path), 0
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is not an address; write host:port, e.g. 127.0.0.1:8000")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)
