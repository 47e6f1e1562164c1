"""A host on another machine: leases over one kept connection to its supervisor, which schedules them."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from hostler.adapters.errors import BackendUnavailable, GatewayError
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.contract import (
    DeviceStatus,
    EngineAddress,
    HostStatus,
    ModelStatus,
    PromptIdentity,
    SwitchMoved,
)
from hostler.supervisor.lease_frames import (
    DEAD_S,
    MAX_LEASES,
    MAX_NAME,
    ClosingFrame,
    DevicesFrame,
    EngineStoppingFrame,
    EventFrame,
    GrantFrame,
    HelloFrame,
    HostFrame,
    LostFrame,
    ModelFrame,
    PlacesFrame,
    QueueFrame,
    RefuseFrame,
    RevokeFrame,
    SwitchFrame,
    ViewFrame,
    WelcomeFrame,
)
from hostler.supervisor.lease_link import LeaseLink
from hostler.supervisor.lease_requests import ask_frame, release_frame, seed_frames
from hostler.supervisor.remote_operations import RemoteOperations
from hostler.supervisor.scheduling.errors import (
    host_draining,
    refusal_error,
    supervisor_stopping,
    supervisor_unreachable,
)
from hostler.supervisor.scheduling.events import (
    DevicesChanged,
    EngineChanged,
    HostChanged,
    HostEvent,
    QueueChanged,
    SwitchChanged,
)
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.types import Refuse, SchedulerSettings
from hostler.supervisor.socket_url import socket_path

#: A supervisor that announced its end, or that is to be updated, is expected back within this time, in seconds.
RETURNS_WITHIN_S = 60.0

#: `Retry-After` when this gateway itself has too many leases, in seconds.
_RETRY_S = 1.0

logger = logging.getLogger(__name__)


class RemoteHost(RemoteOperations):
    """`Host` over a connection to the supervisor at `url`; `client` is for its other operations.

    A lease is granted by the supervisor only, never while it cannot be reached. When the connection is lost, queued leases
    are refused unless it is back at once; granted ones are kept, and claimed again with the next connection.
    """

    def __init__(
        self,
        name: str,
        url: str,
        token: str | None,
        *,
        client: SupervisorClient,
        limits: SchedulerSettings,
        publish: Callable[[HostEvent], None],
        on_status: Callable[[HostStatus], None],
        on_stopping: Callable[[EngineAddress], None],
        clock: Callable[[], float],
        connect_s: float = 2.0,
        tls: ssl.SSLContext | None = None,
        silence_s: float = DEAD_S,
    ) -> None:
        super().__init__(name, client, clock)
        self._link = LeaseLink(
            url, token, hello=self._hello, on_frame=self._on_frame, on_lost=self._lose, usable=lambda: self._usable,
            connect_s=connect_s, tls=tls, silence_s=silence_s,
        )  # fmt: skip
        self._limits = limits
        self._publish = publish
        self._on_status = on_status
        self._on_stopping = on_stopping
        self._instance = secrets.token_hex(8)
        self._address = "127.0.0.1" if socket_path(url) else urlsplit(url).hostname or ""
        self._ids = itertools.count(1)
        self._welcome = False
        self._generation = 0
        self._seeds: Mapping[str, Sequence[float]] = {}
        self._problem = ""
        self._stopped_with: Callable[[], GatewayError] | None = None
        self._incompatible = False
        self._left_at = -math.inf

    @property
    def returning(self) -> bool:
        """See `Host`: the supervisor has announced a restart, or is of another release and about to be replaced."""
        return not self.reachable and self._clock() - self._left_at < RETURNS_WITHIN_S

    # The connection.

    async def run(self) -> None:
        """See `Host`."""
        await self._link.run()

    def _hello(self) -> HelloFrame:
        self._welcome, self._closing = False, False
        held = tuple(number for number, lease in self._leases.items() if lease.granted)
        return HelloFrame(self._instance, _own_name(), self._limits, held)

    def _lose(self, problem: str, incompatible: bool = False) -> None:
        """The supervisor cannot be reached: refuse what waits, and forget what was known of others."""
        if problem != self._problem:
            logger.warning("%s: %s", self.name, problem)
        if incompatible and not self._incompatible:
            self._left_at = self._clock()
        self._problem, self._incompatible, self._welcome = problem, incompatible, False
        self._view.clear()
        for number, lease in list(self._leases.items()):
            if not lease.settled:
                del self._leases[number]
                lease.record_wait(self._clock())
                lease.refuse(self._gone())
        if self.reachable:
            self.reachable = False
            self._publish(HostChanged(backend=self.name, reachable=False, host=self.status))

    def _gone(self) -> GatewayError:
        if self._closing:
            return supervisor_stopping(self.name)
        if self._incompatible:
            return BackendUnavailable(
                f"the supervisor of {self.name} and this gateway are of different releases; update both",
                backend=self.name,
            )
        return supervisor_unreachable(self.name)

    def set_reachable(self, reachable: bool) -> None:
        """See `Host`. A check that failed ends the connection; only a new one shows that the host is back."""
        if not reachable:
            reason = "does not respond to a check"
            self._link.close(reason)
            self._lose(self._problem or f"the supervisor at {self._link.url} {reason}")

    # Leases.

    def lease(
        self,
        model: str,
        *,
        client: str = "",
        request_id: str = "",
        keep_alive_s: float | None = None,
        priority: int = 0,
        client_port: int = 0,
        prompt: PromptIdentity | None = None,
        waited_s: float = 0.0,
        background: bool = False,
    ) -> Lease:
        """See `Host`."""
        number = next(self._ids)
        lease = Lease(
            self, lease_id=number, model=model, requested_at=self._clock() - waited_s, client=client, request_id=request_id,
            keep_alive_s=keep_alive_s, priority=priority, client_port=client_port, prompt=prompt,
            background=background,
        )  # fmt: skip
        if self._stopped_with is not None:
            lease.refuse(self._stopped_with())
        elif not self._usable:
            lease.refuse(self._gone())
        elif self.status is not None and self.status.draining:
            lease.refuse(host_draining(model, self.name))
        elif len(self._leases) >= MAX_LEASES:
            full = Refuse(ticket=number, model=model, reason="queue_full", retry_after_s=_RETRY_S)
            lease.refuse(refusal_error(full, self.name), full)
        else:
            self._leases[number] = lease
            lease.acknowledged = False
            self._view.asked(model)
            if self._welcome:  # else it is asked for with all others
                self._link.send(ask_frame(lease, waited_s))
        return lease

    def release(self, lease: Lease) -> None:
        """See `Lease.release`."""
        if self._leases.pop(lease.id, None) is None:
            return
        if not lease.settled:
            lease.record_wait(self._clock())
            self._view.settled(lease.id)
        self._view.released(lease.model)
        self._link.send(release_frame(lease))

    def stop(self, error: Callable[[], GatewayError]) -> None:
        """See `Host`."""
        self._stopped_with = error
        for lease in list(self._leases.values()):
            if not lease.settled:
                self.release(lease)
                lease.refuse(error())

    def engine_lost(self, address: EngineAddress) -> None:
        """See `Host`. The supervisor tries the address itself before it acts on this."""
        self._link.send(LostFrame(address.model, address.generation))

    def seed_service_times(self, answers: Mapping[str, Sequence[float]]) -> None:
        """See `Host`."""
        self._seeds = answers
        self._send_seeds()

    def _send_seeds(self) -> None:
        for frame in seed_frames(self._seeds):
            self._link.send(frame)

    # Frames.

    def _on_frame(self, frame: EventFrame) -> None:
        match frame:
            case GrantFrame():
                self._on_grant(frame)
            case RefuseFrame():
                self._on_refuse(frame)
            case PlacesFrame():
                self._on_places(frame)
            case QueueFrame():
                self._view.apply_queue(frame, waiting=self._own_waiting(), serving=self._own_serving())
                self._publish(QueueChanged(backend=self.name, waiting=frame.waiting, serving=frame.serving))
            case ViewFrame():
                # The supervisor answers each request for a lease, so one without an answer is not in the view.
                unseen = (each.model for each in self._leases.values() if not (each.settled or each.acknowledged))
                self._view.apply_models(frame, self._clock(), unseen)
            case SwitchFrame():
                self._on_switch(frame.switch)
            case ModelFrame():
                self._on_model(frame.status)
            case DevicesFrame():
                self._on_devices(frame.devices)
            case HostFrame():
                self._on_host(frame.status)
            case RevokeFrame():
                if (lease := self._leases.get(frame.id)) is not None:
                    lease.revoke(frame.reason)
            case EngineStoppingFrame():
                self._on_stopping(self._with_host(frame.address))
            case WelcomeFrame():
                self._on_welcome(frame.generation)
            case ClosingFrame():
                self._on_closing()

    def _on_places(self, frame: PlacesFrame) -> None:
        self._view.apply_places(frame, self._clock())
        for place in frame.places:
            if (lease := self._leases.get(place.id)) is not None:
                lease.acknowledge()

    def _on_welcome(self, generation: int) -> None:
        """Ask for everything that waits, anew. What was known of another process of the supervisor is void."""
        self._welcome = True
        now = self._clock()
        if generation != self._generation:
            self._generation = generation
            self._view.clear()
        self._view.settle_switches(now)
        for lease in self._leases.values():
            if not lease.settled:
                self._link.send(ask_frame(lease, max(0.0, now - lease.requested_at)))
        self._send_seeds()

    def _on_grant(self, frame: GrantFrame) -> None:
        lease = self._leases.get(frame.id)
        if lease is None:
            return  # it was withdrawn meanwhile
        if self._link.was_suspended():
            # Granted before this process was suspended: the supervisor may have given the slot to another gateway.
            self._link.close()
            return
        self._on_settled(lease, frame.switch_s)
        lease.slot = frame.slot
        lease.grant(self._with_host(frame.address))

    def _on_refuse(self, frame: RefuseFrame) -> None:
        lease = self._leases.pop(frame.id, None)
        if lease is None:
            return
        self._on_settled(lease, frame.switch_s)
        self._view.released(lease.model)
        refusal = Refuse(
            ticket=lease.id, model=lease.model, reason=frame.reason, retry_after_s=frame.retry_after_s,
            failure=frame.failure, model_lease=frame.model_lease,
        )  # fmt: skip
        lease.refuse(refusal_error(refusal, self.name, self.status), refusal)

    def _on_settled(self, lease: Lease, switch_s: float) -> None:
        lease.waited_s = self._clock() - lease.requested_at
        lease.switch_s = min(switch_s, lease.waited_s)
        self._view.settled(lease.id)

    def _on_switch(self, switch: SwitchMoved) -> None:
        if self._view.apply_switch(switch, self._clock()):
            for lease in self._leases.values():
                if lease.model == switch.model and not lease.settled:
                    lease.notify()
        self._publish(SwitchChanged(backend=self.name, switch=switch))

    def _on_model(self, status: ModelStatus) -> None:
        if self.status is None:
            return
        self.status = self.status.with_model(status)
        self._view.apply_state(status)
        self._on_status(self.status)
        self._publish(EngineChanged(backend=self.name, status=status))

    def _on_devices(self, devices: tuple[DeviceStatus, ...]) -> None:
        if self.status is not None:
            self.status = msgspec.structs.replace(self.status, devices=devices)
            self._publish(DevicesChanged(backend=self.name, devices=devices))

    def _on_host(self, status: HostStatus) -> None:
        if self._closing:
            return
        if not self.reachable:
            logger.info("%s: the supervisor at %s is connected", self.name, self._link.url)
        self.status, self.reachable, self._problem, self._incompatible = status, True, "", False
        self._on_status(status)
        self.synced.set()
        self._publish(HostChanged(backend=self.name, reachable=True, host=status))

    def _on_closing(self) -> None:
        """The supervisor stops; what is granted goes on. It refuses what waits by itself."""
        self._closing = True
        self._left_at = self._clock()
        self.reachable = False
        self._publish(HostChanged(backend=self.name, reachable=False, host=self.status))

    def _with_host(self, address: EngineAddress) -> EngineAddress:
        """An engine that listens on all interfaces is reached at its supervisor's address."""
        if address.host in ("0.0.0.0", "::", ""):
            return msgspec.structs.replace(address, host=self._address)
        return address


def _own_name() -> str:
    """This machine and process, for the supervisor's log."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{os.getpid()}")[-MAX_NAME:]
