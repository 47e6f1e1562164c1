"""Whether the memory that is free holds one more model beside those that run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio.to_thread
import msgspec

from hostler.profiles.schema import Profile
from hostler.supervisor.contract import DeviceStatus, Failure, FailureKind
from hostler.supervisor.memory_meter import mapped_memory
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.placement import PlacementPolicy, footprint_of
from hostler.supervisor.scheduling.eviction import models_to_evict
from hostler.supervisor.sleeping_models import SleepingModels

#: Failures of a start for which the models beside it may be the reason.
_CROWDED: Final[tuple[FailureKind, ...]] = ("out_of_memory", "killed", "does_not_fit")

logger = logging.getLogger(__name__)


class SpareMemory:
    """The memory for models that are to start beside others, even on hosts of one model at a time.

    `others` lists the models that are alive besides one, `devices` the GPUs, `free_memory` returns the bytes available.
    """

    def __init__(
        self, policy: PlacementPolicy, sleeping: SleepingModels, *,
        others: Callable[[ManagedModel], list[ManagedModel]], devices: Callable[[], Sequence[DeviceStatus]],
        free_memory: Callable[[], int],
    ) -> None:  # fmt: skip
        self._policy = policy
        self._sleeping = sleeping
        self._others = others
        self._devices = devices
        self._free_memory = free_memory
        #: Profiles whose start beside others has failed: they need more than expected.
        self._too_large: dict[str, Profile] = {}

    async def holds(self, model: ManagedModel) -> bool:
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
        return need.memory_bytes - sum(need.device_bytes.values()) <= await self.unused_memory(model)

    async def unused_memory(self, model: ManagedModel) -> int:
        """The memory that can be filled without pushing out what other engines have mapped."""
        pids = [other.process.pid for other in self._others(model)]
        return self._free_memory() - await anyio.to_thread.run_sync(
            mapped_memory, [pid for pid in pids if pid is not None]
        )

    def excuse(self, model: ManagedModel, failure: Failure) -> bool:
        """Excuse a start beside others that failed for want of memory: it does not count, and there is no room for this
        profile again. False if it failed otherwise."""
        if failure.kind not in _CROWDED:
            return False
        logger.warning("%s: could not be started beside others: %s", model.name, failure.message)
        self._too_large[model.name] = model.profile
        model.process.reset_failures()
        return True


def _free(device: DeviceStatus) -> int:
    if device.total_bytes is None or device.used_bytes is None:
        return 0
    return device.total_bytes - device.used_bytes
