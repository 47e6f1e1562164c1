"""The events that an orchestrator publishes about its host. Values only; the gateway's bus delivers them."""

from __future__ import annotations

import msgspec

from hostler.supervisor.contract import DeviceStatus, HostStatus, ModelStatus, SwitchMoved


class HostChanged(msgspec.Struct, frozen=True, kw_only=True, tag="host"):
    """The host's status. `reachable` is false while its supervisor does not answer; `host` is the last known status
    then."""

    backend: str
    reachable: bool
    host: HostStatus | None = None


class EngineChanged(msgspec.Struct, frozen=True, kw_only=True, tag="engine"):
    """A model's process changed its state, or its load advanced."""

    backend: str
    status: ModelStatus


class SwitchChanged(msgspec.Struct, frozen=True, kw_only=True, tag="switch"):
    """A switch entered a phase."""

    backend: str
    switch: SwitchMoved


class DevicesChanged(msgspec.Struct, frozen=True, kw_only=True, tag="devices"):
    """New readings of the host's GPUs."""

    backend: str
    devices: tuple[DeviceStatus, ...]


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A queued request; `position` counts from 1. `id` is the request's own, which `POST /admin/cancel` takes.

    `eta_s` is its estimated wait, if that rests on measurements and nothing takes longer than usual: as the client sees it.
    """

    id: str
    model: str
    client: str
    position: int
    waited_s: float
    eta_s: float | None = None


class QueueChanged(msgspec.Struct, frozen=True, kw_only=True, tag="queue"):
    """The queued requests in the order of service, and how many are being served."""

    backend: str
    waiting: tuple[Waiting, ...]
    serving: int


HostEvent = HostChanged | EngineChanged | SwitchChanged | DevicesChanged | QueueChanged
