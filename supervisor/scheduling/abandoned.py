"""Granted leases whose holder has vanished: each keeps its slot until the engine has room without it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import anyio
from anyio.abc import TaskGroup

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.scheduling.lease import Lease

#: Pauses before an engine is looked at, in seconds: it notices a closed connection at once, one of a client that waits for
#: a whole answer only between two looks. The last pause is repeated.
LOOKS_S = (0.1, 0.4, 0.6, 1.5)

#: A request granted no longer ago than this may not have reached the engine yet, in seconds.
ARRIVES_WITHIN_S = 1.0

#: An engine that works for nothing but abandoned leases is given up after this time, in seconds: on a cable that went dead
#: it would wait for minutes until somebody reads its answer.
GIVE_UP_S = 30.0


class AbandonedLeases:
    """The abandoned leases of a host, by model.

    `active` returns how many requests an engine works on, `None` if it cannot tell; `release` ends a lease, `give_up` has
    an engine restarted, and `held` lists all leases of the host. A request on a broken connection may go on for a while,
    and one on a dead cable as long as its answer: releasing its lease at once would give one slot to two requests.
    """

    def __init__(
        self,
        active: Callable[[str, int], Awaitable[int | None]],
        release: Callable[[Lease], None],
        give_up: Callable[[EngineAddress], None],
        held: Callable[[], Iterable[Lease]],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._active = active
        self._release = release
        self._give_up = give_up
        self._held = held
        self._clock = clock
        self._leases: dict[str, dict[Lease, float]] = {}

    def add(self, lease: Lease, tasks: TaskGroup) -> None:
        """Release the lease when the engine has room without it."""
        leases = self._leases.get(lease.model)
        if leases is None:
            leases = self._leases[lease.model] = {}
            tasks.start_soon(self._watch, lease.model)
        leases.setdefault(lease, self._clock())

    def discard(self, lease: Lease) -> None:
        """The lease was released, or its holder is back."""
        leases = self._leases.get(lease.model)
        if leases is not None:
            leases.pop(lease, None)

    async def _watch(self, model: str) -> None:
        leases = self._leases[model]
        looks = iter(LOOKS_S)
        try:
            while leases:
                await anyio.sleep(next(looks, LOOKS_S[-1]))
                if not leases:
                    return
                address = next(iter(leases)).address()
                active = await self._active(model, address.generation)
                settled = [each for each in leases if each.address() == address and not self._is_fresh(each)]
                for lease in settled[: self._room(leases, address, active)]:
                    self._release(lease)
                if leases and self._is_stuck(leases, address):
                    self._give_up(address)
        finally:
            del self._leases[model]

    def _room(self, leases: dict[Lease, float], address: EngineAddress, active: int | None) -> int:
        """How many abandoned leases the engine has room without."""
        if not active:
            return len(leases)
        on_their_way = sum(map(self._is_fresh, self._others(leases, address)))
        return max(0, address.parallel - active - on_their_way)

    def _is_fresh(self, lease: Lease) -> bool:
        """Whether its request may not have reached the engine yet."""
        return self._clock() - lease.requested_at - lease.waited_s < ARRIVES_WITHIN_S

    def _is_stuck(self, leases: dict[Lease, float], address: EngineAddress) -> bool:
        since = min(leases.values())
        return self._clock() - since >= GIVE_UP_S and not any(True for _ in self._others(leases, address))

    def _others(self, leases: dict[Lease, float], address: EngineAddress) -> Iterable[Lease]:
        """The leases of this engine whose holder is there."""
        return (lease for lease in self._held() if lease.granted and lease.address() == address and lease not in leases)
