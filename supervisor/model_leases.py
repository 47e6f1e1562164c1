"""Leases of models: who has which model kept loaded, and until when. They survive a restart of the supervisor."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from hostler.supervisor.contract import LEASE_TOO_LONG, LONGEST_LEASE_S, Failure, ModelLease, SupervisorError
from hostler.supervisor.state_store import JsonStore

#: The most leases of a host.
MOST: Final = 100

#: The clock of the day may be set meanwhile: look at it at least this often, in seconds.
_LOOK_AGAIN_S: Final = 30.0


class ModelLeases:
    """The leases of a host's models, in a file. `on_change` is called when some have begun, changed or ended."""

    def __init__(
        self, file: Path | None, on_change: Callable[[], None], *, wall: Callable[[], float] = time.time
    ) -> None:
        self._store = JsonStore(file, tuple[ModelLease, ...], contents="leases of models", sync=True)
        self._on_change = on_change
        self._wall = wall
        self._leases: dict[str, ModelLease] = {}
        self._changed = anyio.Event()

    @property
    def active(self) -> tuple[ModelLease, ...]:
        """The leases that have not expired, the first to expire first."""
        now = self._wall()
        active = (lease for lease in self._leases.values() if lease.expires_at > now)
        return tuple(sorted(active, key=lambda lease: lease.expires_at))

    def is_leased(self, model: str) -> bool:
        """Whether the model must stay loaded."""
        return any(lease.model == model for lease in self.active)

    async def add(self, model: str, holder: str, seconds: float) -> ModelLease:
        """A lease from now on; `holder` has one at a time of each model, which is extended. Raises `SupervisorError`."""
        if seconds > LONGEST_LEASE_S:
            raise SupervisorError(Failure(kind="cancelled", message=LEASE_TOO_LONG))
        now = self._wall()
        before = next((each for each in self.active if (each.model, each.holder) == (model, holder)), None)
        if before is None and len(self._leases) >= MOST:
            raise SupervisorError(
                Failure(kind="cancelled", message=f"this host has {MOST} leases already; end some first")
            )
        lease = ModelLease(
            id=f"lease-{secrets.token_hex(6)}" if before is None else before.id,
            model=model,
            holder=holder,
            created_at=now if before is None else before.created_at,
            expires_at=now + seconds,
        )
        self._leases[lease.id] = lease
        await self._apply()
        return lease

    async def end(self, lease_id: str) -> ModelLease | None:
        """End a lease; `None` if there is none of that id."""
        ended = self._leases.pop(lease_id, None)
        if ended is not None:
            await self._apply()
        return ended

    async def keep_only(self, models: Collection[str]) -> None:
        """End the leases of models that are not in `models`."""
        kept = {key: lease for key, lease in self._leases.items() if lease.model in models}
        if len(kept) != len(self._leases):
            self._leases = kept
            await self._apply()

    def read(self) -> None:
        """Read the file. Blocks."""
        now = self._wall()
        for lease in self._store.read() or ():
            if lease.expires_at > now:
                self._leases.setdefault(lease.id, lease)

    async def run(self) -> None:
        """End leases when they expire, until cancelled."""
        while True:
            self._changed = anyio.Event()
            now = self._wall()
            expired = [lease.id for lease in self._leases.values() if lease.expires_at <= now]
            for lease_id in expired:
                del self._leases[lease_id]
            if expired:
                await self._apply()
                continue
            next_at = min((lease.expires_at for lease in self._leases.values()), default=None)
            if next_at is None:
                await self._changed.wait()
            else:
                with anyio.move_on_after(min(next_at - now, _LOOK_AGAIN_S)):
                    await self._changed.wait()

    async def _apply(self) -> None:
        self._changed.set()
        self._on_change()
        await anyio.to_thread.run_sync(self._store.write, lambda: tuple(self._leases.values()))
