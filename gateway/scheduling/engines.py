"""Where the engines of one host listen, as far as its supervisor has told, and which of these addresses are dead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import anyio
import msgspec

from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor, SupervisorUnreachable, UnknownProfile

#: How long a supervisor may take to notice a dead engine: the first pause before it is asked again, and the last.
_UNNOTICED_S, _UNNOTICED_LIMIT_S = 0.01, 1.0


class EngineAddresses:
    """One address for each model that is ready. Written by the orchestrator of the host, and by nobody else."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._known: dict[str, EngineAddress] = {}
        self._dead: dict[str, EngineAddress] = {}

    def of(self, model: str) -> EngineAddress | None:
        """The address, if there is one."""
        return self._known.get(model)

    def known(self, model: str) -> EngineAddress:
        """The address of a model that is ready."""
        return self._known[model]

    def models(self) -> Collection[str]:
        """The models that have one."""
        return self._known.keys()

    def put(self, address: EngineAddress) -> None:
        """The model listens there."""
        self._known[address.model] = address

    def forget(self, model: str) -> EngineAddress | None:
        """The model stops, or has stopped. The address that it had."""
        return self._known.pop(model, None)

    def lost(self, address: EngineAddress) -> bool:
        """Nobody listens there any more. Whether that is news."""
        if self._known.get(address.model) != address:
            return False
        self._dead[address.model] = self._known.pop(address.model)
        return True

    async def locate(self, model: str, *, fresh: bool = False) -> bool:
        """Ask the supervisor. Whether it knows an address; one of an older process than is known is not believed,
        unless what is known is stale (`fresh`)."""
        try:
            address = await self._supervisor.locate(model)
        except (SupervisorUnreachable, UnknownProfile):
            return False
        if address is None:
            return False
        known = self._known.get(model)
        if fresh or known is None or known.generation <= address.generation:
            self._known[model] = address
        return True

    async def located(self, host: HostStatus, *, fresh: bool, replaced: Callable[[str], None]) -> HostStatus:
        """The status, with every ready model's address known; one that is gone by now counts as stopped.

        `fresh`: the first one after a silence. The supervisor may be another one by now, which counts generations from
        the beginning, so nothing that was known before counts. A later one may be older than an order's result.
        `replaced` is told at once the models whose address counts no more.
        """
        models = []
        for status in host.models:
            known = self._known.get(status.model)
            if known is not None and not fresh and known.generation > status.generation:
                status = msgspec.structs.replace(status, state="ready", generation=known.generation)
            elif status.state == "ready":
                unknown = fresh or known is None or known.generation < status.generation
                if unknown and not await self.locate(status.model, fresh=fresh):
                    status = msgspec.structs.replace(status, state="stopped")
                    if fresh:
                        self._known.pop(status.model, None)
                if known is not None and self._known.get(status.model) != known:
                    replaced(status.model)
            elif known is not None and status.state == "starting" and known.generation == status.generation:
                status = msgspec.structs.replace(status, state="ready")
            elif self._known.pop(status.model, None) is not None:
                replaced(status.model)
            models.append(status)
        return msgspec.structs.replace(host, models=tuple(models))

    async def reach(self, model: str, *, evict: Sequence[str], epoch: int) -> EngineAddress:
        """Have the supervisor switch to the model; where it listens, which is not an address that has just refused us.

        A process that was killed answers nobody a moment before its supervisor hears of it. One that lets nobody in and
        lives on is ended. Raises what the supervisor raises.
        """
        pause_s = _UNNOTICED_S
        while True:
            address = await self._supervisor.switch(model, evict=evict, epoch=epoch)
            if address != self._dead.get(model):
                self._dead.pop(model, None)
                return address
            await anyio.sleep(pause_s)
            pause_s *= 2
            if pause_s > _UNNOTICED_LIMIT_S:
                await self._supervisor.unload(model, epoch=epoch)
