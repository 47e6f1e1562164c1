"""What operators do to a host on another machine: requests to its supervisor over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from hostler.adapters.errors import ModelUnavailable
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.contract import ModelLease, SupervisorError, SupervisorUnreachable, UnknownProfile
from hostler.supervisor.followed_host import FollowedHost
from hostler.supervisor.scheduling.errors import SOON_S, check_not_leased, profile_removed, supervisor_unreachable
from hostler.supervisor.scheduling.estimates import SwitchEstimate


class RemoteOperations(FollowedHost):
    """Unloads, pins, drains and keeps models loaded. The client's errors are raised as those of the gateway."""

    def __init__(self, name: str, client: SupervisorClient, clock: Callable[[], float]) -> None:
        super().__init__(name, clock)
        self._client = client

    async def unload(self, model: str, *, force: bool = False) -> None:
        """See `Host`."""
        check_not_leased(model, self.model_leases)
        with self._operating(model):
            await self._client.unload(model, force=force)

    async def pin(self, model: str, pinned: bool) -> bool:
        """See `Host`."""
        with self._operating(model):
            return await self._client.pin(model, pinned)

    async def drain(self, draining: bool) -> bool:
        """See `Host`."""
        with self._operating(""):
            return await self._client.drain(draining)

    async def lease_model(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        """See `Host`."""
        with self._operating(model):
            lease = await self._client.lease_model(model, holder=holder, seconds=seconds)
        self._apply_leases((*(each for each in self.model_leases if each.id != lease.id), lease))
        return lease

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        """See `Host`."""
        with self._operating(""):
            ended = await self._client.end_lease(lease_id)
        self._apply_leases(tuple(each for each in self.model_leases if each.id != lease_id))
        return ended

    def _apply_leases(self, leases: tuple[ModelLease, ...]) -> None:
        """Show leases at once, without waiting for the supervisor's event."""
        if self.status is not None:
            self.status = msgspec.structs.replace(self.status, leases=leases)

    @contextmanager
    def _operating(self, model: str) -> Iterator[None]:
        """Raise the client's errors as those of the gateway."""
        try:
            yield
        except UnknownProfile:
            raise profile_removed(model, self.name) from None
        except SupervisorUnreachable:
            raise supervisor_unreachable(self.name) from None
        except SupervisorError as error:
            after = error.failure.retry_after_s
            final = after is None or after > SOON_S
            raise ModelUnavailable(
                error.failure.message, retry_after_s=after, model=model or None, final=final
            ) from None

    async def estimate_switch(self, model: str) -> SwitchEstimate | None:
        """See `Host`."""
        try:
            return await self._client.forecast(model)
        except (UnknownProfile, SupervisorUnreachable):
            return None
