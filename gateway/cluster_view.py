"""The cluster as status, metrics and commands show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

#: What members share.
ConfigurationKind = Literal["profiles", "keys"]


class ConfigurationState(msgspec.Struct, frozen=True, kw_only=True):
    """What a member has made of what is shared of a kind: `version` is in use (0: none), and `refused` is a newer one that it
    cannot use, for a `reason`. A reason without it: what is in use could not be used anew. `note` is for operators."""

    kind: ConfigurationKind
    version: int
    refused: int = 0
    reason: str = ""
    note: str = ""


class ClusterMember(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway; `own` is the one that answers. `since` is its start, in seconds since the epoch."""

    id: str
    name: str
    version: str
    listen: tuple[str, ...]
    since: float
    own: bool
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


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster's store, its gateways and the hosts that joined. `connected`: the store is in use; otherwise `reason`
    is why not, and `since` is when that changed, in seconds since the epoch. `problems` are what else an operator should
    look at, in sentences. `calls` counts commands by outcome: `ok`, `failed`, `away`."""

    name: str
    store: str
    connected: bool
    reason: str
    since: float
    gateways: tuple[ClusterMember, ...] = ()
    hosts: tuple[ClusterHost, ...] = ()
    problems: tuple[str, ...] = ()
    calls: Mapping[str, int] = {}
