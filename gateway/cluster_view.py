"""The cluster as status, metrics and commands show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from hostler.supervisor.scheduling.host import Host

#: What members share.
ConfigurationKind = Literal["profiles", "keys"]


class ConfigurationState(msgspec.Struct, frozen=True, kw_only=True):
    """What a member has made of what is shared of a kind: `version` is in use (0: none), and `refused` is a newer one that it
    cannot use, for a `reason`. A reason without it: what is in use could not be used anew, or, of no version, is not believed
    any more. `note` is for operators."""

    kind: ConfigurationKind
    version: int
    refused: int = 0
    reason: str = ""
    note: str = ""


class ClusterMember(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway; `own` is the one that answers. `since` is its start, in seconds since the epoch, `url` where other gateways
    reach it, if they do."""

    id: str
    name: str
    version: str
    listen: tuple[str, ...]
    since: float
    own: bool
    url: str | None = None
    configuration: tuple[ConfigurationState, ...] = ()


class ClusterHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that joined by itself; `name` is that of its backend. `since` is the start of its supervisor, in seconds since the
    epoch."""

    id: str
    name: str
    url: str
    version: str
    since: float
    configuration: tuple[ConfigurationState, ...] = ()


class HostModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a host: its phase, the requests that use it and that wait for it, and how many fit."""

    model: str
    phase: str
    running: int
    parallel: int
    waiting: int


class HostElsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """A host that only other gateways use: `gateways` are their names, `name` is the first one's for it. `memory_bytes` is what
    its models take."""

    name: str
    gateways: tuple[str, ...] = ()
    reachable: bool
    draining: bool
    serving: int
    waiting: int
    memory_bytes: int
    models: tuple[HostModel, ...] = ()


class GatewayHost(msgspec.Struct, frozen=True, array_like=True):
    """A host as one of its gateways sees it. `generation` is that of its supervisor, which tells which host it is."""

    generation: int
    view: HostElsewhere


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster's store, its gateways and the hosts that joined. `connected`: the store is in use; otherwise `reason`
    is why not, and `since` is when that changed, in seconds since the epoch. `elsewhere` are hosts that only other gateways
    use, `requests` counts those in flight at each gateway, by its name, and `calls` commands by outcome: `ok`, `failed`,
    `away`. `problems` are further ones for the operator, in sentences."""

    name: str
    store: str
    connected: bool
    reason: str
    since: float
    gateways: tuple[ClusterMember, ...] = ()
    hosts: tuple[ClusterHost, ...] = ()
    elsewhere: tuple[HostElsewhere, ...] = ()
    requests: Mapping[str, int] = {}
    problems: tuple[str, ...] = ()
    calls: Mapping[str, int] = {}


def gateway_host(host: Host) -> GatewayHost | None:
    """A host of this gateway, for the others; `None` if it was never reached."""
    status = host.status
    if status is None:
        return None
    models = (
        HostModel(
            model=each.model, phase=each.phase, running=each.running, parallel=each.parallel, waiting=each.waiting
        )
        for each in host.models()
    )
    view = HostElsewhere(
        name=host.name,
        reachable=host.reachable,
        draining=status.draining,
        serving=host.serving,
        waiting=host.waiting,
        memory_bytes=sum(each.memory_bytes + each.gpu_bytes for each in status.models),
        models=tuple(models),
    )
    return GatewayHost(status.generation, view)
