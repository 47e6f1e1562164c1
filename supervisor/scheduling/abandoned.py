"""Granted leases whose holder has vanished: each keeps its slot until the engine does not work for it any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import anyio
from anyio.abc import TaskGroup

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.scheduling.lease import Lease

#: Pauses between two checks of an engine, in seconds: it notices a closed connection at once, one of a client that waits
#: for a whole answer only between two checks. The last pause is repeated.
CHECKS_S = (0.1, 0.4, 0.6, 1.5)

#: A request granted no longer ago than this may not have reached the engine yet, in seconds.
ARRIVES_WITHIN_S = 1.0

#: Abandoned leases are released after so many consecutive checks at which the engine works on no more requests than those
#: whose holders are there. One is not enough: theirs may be on the way while it works on the abandoned ones.
QUIET_CHECKS = 4

#: An engine that works for nothing but abandoned leases is given up after this time, in seconds, if requests are queued: on
#: a cable that went dead it would wait for minutes for its answer to be read.
GIVE_UP_S = 30.0


class AbandonedLeases:
    """The abandoned leases of a host, by model.

    `active` returns how many requests an engine works on, `None` if it cannot tell: then its leases are released at once.
    `release` ends a lease, `give_up` stops an engine and revokes its leases, `leases` lists those of the host, queued ones
    included. A request on a broken connection may go on for a while, and one on a dead cable as long as its answer:
    releasing its lease at once would give one slot to two requests.
    """

    def __init__(
        self,
        active: Callable[[str, int], Awaitable[int | None]],
        release: Callable[[Lease], None],
        give_up: Callable[[EngineAddress], None],
        leases: Callable[[], Iterable[Lease]],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._active = active
        self._release = release
        self._give_up = give_up
        self._all = leases
        self._clock = clock
        self._leases: dict[str, dict[Lease, float]] = {}

    def add(self, lease: Lease, tasks: TaskGroup) -> None:
        """Release the lease when the engine does not work for it any more."""
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
        pauses, quiet = iter(CHECKS_S), 0
        try:
            while leases:
                await anyio.sleep(next(pauses, CHECKS_S[-1]))
                if not leases:
                    return
                address = next(iter(leases)).address()
                active = await self._active(model, address.generation)
                others = self._others(leases, address)
                quiet = quiet + 1 if active is not None and active <= len(others) else 0
                count = len(leases) if quiet >= QUIET_CHECKS else self._finished(leases, others, active)
                settled = [each for each in leases if each.address() == address and not self._is_fresh(each)]
                for lease in settled[:count]:
                    self._release(lease)
                if leases and not others and self._is_stuck(leases):
                    self._give_up(address)
        finally:
            del self._leases[model]

    def _finished(self, leases: dict[Lease, float], others: list[Lease], active: int | None) -> int:
        """For how many abandoned leases the engine certainly does not work: some of its requests are those of the others that
        have arrived. Free slots do not matter, since the scheduler grants them as well."""
        if not active:
            return len(leases)
        arrived = sum(not self._is_fresh(lease) for lease in others)
        return max(0, len(leases) - max(0, active - arrived))

    def _is_fresh(self, lease: Lease) -> bool:
        """Whether its request may not have reached the engine yet."""
        return self._clock() - lease.requested_at - lease.waited_s < ARRIVES_WITHIN_S

    def _is_stuck(self, leases: dict[Lease, float]) -> bool:
        """Whether the engine has worked for abandoned leases for too long, while requests are queued."""
        return self._clock() - min(leases.values()) >= GIVE_UP_S and not all(lease.settled for lease in self._all())

    def _others(self, leases: dict[Lease, float], address: EngineAddress) -> list[Lease]:
        """The leases of this engine whose holder is there."""
        return [lease for lease in self._all() if lease.granted and lease.address() == address and lease not in leases]
