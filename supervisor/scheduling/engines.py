"""The addresses of one host's engines, as reported by its supervisor, and which of them are dead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import anyio
import msgspec

from hostler.supervisor.contract import EngineAddress, HostStatus, Supervisor, SupervisorUnreachable, UnknownProfile

#: How long a supervisor may take to notice a dead engine: the first pause before it is asked again, and the longest.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 1.0


class EngineAddresses:
    """One address for each ready model. Written by the host's orchestrator alone."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._addresses: dict[str, EngineAddress] = {}
        self._dead: dict[str, EngineAddress] = {}

    def get(self, model: str) -> EngineAddress | None:
        """The model's address, if it has one."""
        return self._addresses.get(model)

    def of_ready(self, model: str) -> EngineAddress:
        """The address of a model that is ready. Raises `KeyError` if there is none."""
        return self._addresses[model]

    def models(self) -> Collection[str]:
        """The models that have an address."""
        return self._addresses.keys()

    def put(self, address: EngineAddress) -> None:
        """Set the address of `address.model`."""
        self._addresses[address.model] = address

    def remove(self, model: str) -> EngineAddress | None:
        """Remove and return the model's address, if it has one."""
        return self._addresses.pop(model, None)

    def mark_dead(self, address: EngineAddress) -> bool:
        """Nothing listens there any more. Returns false if the address was not current."""
        if self._addresses.get(address.model) != address:
            return False
        self._dead[address.model] = self._addresses.pop(address.model)
        return True

    async def locate(self, model: str, *, fresh: bool = False) -> bool:
        """Ask the supervisor for the address. Returns whether it has one.

        The address of an older process than the current one is ignored, unless what is known is stale (`fresh`), and one
        that was marked dead counts as none.
        """
        try:
            address = await self._supervisor.locate(model)
        except (SupervisorUnreachable, UnknownProfile):
            return False
        if address is None or address == self._dead.get(model):
            return False
        known = self._addresses.get(model)
        if fresh or known is None or known.generation <= address.generation:
            self._addresses[model] = address
        return True

    async def reconcile(self, host: HostStatus, *, fresh: bool, replaced: Callable[[str], None]) -> HostStatus:
        """Locate every ready model of a snapshot, and return the status corrected by what is known.

        A model that cannot be located counts as stopped. `fresh`: the first snapshot after the supervisor was lost; it
        may be another supervisor, which counts generations from the beginning, so nothing known before is valid. A
        later snapshot may be older than a switch's result. `replaced` is called at once with each model whose address
        is no longer valid.
        """
        models = []
        for status in host.models:
            known = self._addresses.get(status.model)
            if known is not None and not fresh and known.generation > status.generation:
                status = msgspec.structs.replace(status, state="ready", generation=known.generation)
            elif status.state == "ready":
                unknown = fresh or known is None or known.generation < status.generation
                if unknown and not await self.locate(status.model, fresh=fresh):
                    status = msgspec.structs.replace(status, state="stopped")
                    if fresh:
                        self._addresses.pop(status.model, None)
                if known is not None and self._addresses.get(status.model) != known:
                    replaced(status.model)
            elif known is not None and status.state == "starting" and known.generation == status.generation:
                status = msgspec.structs.replace(status, state="ready")
            elif self._addresses.pop(status.model, None) is not None:
                replaced(status.model)
            models.append(status)
        return msgspec.structs.replace(host, models=tuple(models))

    async def switch_to(self, model: str, *, evict: Sequence[str]) -> EngineAddress:
        """Order the switch; returns where the model listens, never an address that was marked dead.

        A killed process is gone a moment before its supervisor notices; one that accepts no connections but lives on is
        unloaded. Raises what the supervisor raises.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            address = await self._supervisor.switch(model, evict=evict)
            if address != self._dead.get(model):
                self._dead.pop(model, None)
                return address
            await anyio.sleep(pause_s)
            pause_s *= 2
            if pause_s > _LONGEST_PAUSE_S:
                await self._supervisor.unload(model)
