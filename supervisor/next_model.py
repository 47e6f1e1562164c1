"""What is done for the model that is loaded next, while others still finish their answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Literal

import anyio
import anyio.to_thread
import msgspec

from hostler.profiles.schema import Profile
from hostler.supervisor.contract import DeviceStatus, FailureKind, SupervisorError
from hostler.supervisor.memory_meter import mapped_memory
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.placement import PlacementPolicy, footprint_of
from hostler.supervisor.scheduling.eviction import models_to_evict
from hostler.supervisor.sleeping_models import SleepingModels
from hostler.supervisor.switches import SwitchCoordinator

#: Failures of a start for which the models beside it may be the reason.
_CROWDED: Final[tuple[FailureKind, ...]] = ("out_of_memory", "killed", "does_not_fit")

logger = logging.getLogger(__name__)


class NextModel:
    """Fetches and reads ahead the file of the next model or, if `mode` allows it and its memory is free, starts its engine.

    `others` lists the models that are alive besides one, `devices` the GPUs, `free_memory` returns the bytes available.
    """

    def __init__(
        self, mode: Literal["off", "read", "start"], switches: SwitchCoordinator, policy: PlacementPolicy, *,
        sleeping: SleepingModels, others: Callable[[ManagedModel], list[ManagedModel]],
        devices: Callable[[], Sequence[DeviceStatus]], free_memory: Callable[[], int],
    ) -> None:  # fmt: skip
        self._mode = mode
        self._switches = switches
        self._policy = policy
        self._sleeping = sleeping
        self._others = others
        self._devices = devices
        self._free_memory = free_memory
        self._scope: anyio.CancelScope | None = None
        #: Profiles whose start beside others has failed: they need more than expected.
        self._too_large: dict[str, Profile] = {}

    async def prepare(self, model: ManagedModel | None, *, start: bool) -> None:
        """See `contract.SupportsPreparing`."""
        if self._scope is not None:
            self._scope.cancel()
        if model is None or self._mode == "off":
            return
        with anyio.CancelScope() as self._scope:
            await model.lifecycle.fetch_file()
            if start and self._mode == "start" and await self._has_room(model):
                await self._start(model)
            elif not model.process.staying:
                await model.lifecycle.read_ahead(await self._unused_memory(model))

    async def _start(self, model: ManagedModel) -> None:
        """Start its engine. Cancelled before that is ready, it is stopped, unless a switch to it has begun."""
        names = ", ".join(other.name for other in self._others(model))
        logger.info("%s: starting while %s finish their answers", model.name, names)
        switch = self._switches.begin_overlap(model)
        try:
            await switch.result.wait()
        except SupervisorError as error:
            if error.failure.kind not in _CROWDED:
                raise
            logger.warning("%s: could not be started beside %s: %s", model.name, names, error.failure.message)
            self._too_large[model.name] = model.profile
            model.process.reset_failures()
        finally:
            if not switch.result.settled and self._switches.current(model.name) is switch:
                self._switches.cancel(model.name, f'model "{model.name}" is not needed any more')
                model.process.request_stop()

    async def _has_room(self, model: ManagedModel) -> bool:
        """Whether the budgets and the memory that is free now hold it beside everything that runs."""
        known = model.lifecycle.memory_need
        if not (known.declared or known.measured or known.weights) or self._too_large.get(model.name) == model.profile:
            return False
        need = footprint_of(model)
        together = msgspec.structs.replace(self._policy.capacity, exclusive=False, groups=(), sets=())
        if models_to_evict(need, map(footprint_of, self._others(model)), together) != frozenset():
            return False
        if self._sleeping.asleep_besides(model, self._sleeping.may_sleep(model)):
            return False  # what sleeps there ends only when the switch begins
        free = {each.name: _free(each) for each in self._devices()}
        if any(size > free.get(name, 0) for name, size in need.device_bytes.items()):
            return False
        return need.memory_bytes - sum(need.device_bytes.values()) <= await self._unused_memory(model)

    async def _unused_memory(self, model: ManagedModel) -> int:
        """The memory that can be filled without pushing out what other engines have mapped."""
        pids = [other.process.pid for other in self._others(model)]
        return self._free_memory() - await anyio.to_thread.run_sync(
            mapped_memory, [pid for pid in pids if pid is not None]
        )


def _free(device: DeviceStatus) -> int:
    if device.total_bytes is None or device.used_bytes is None:
        return 0
    return device.total_bytes - device.used_bytes
