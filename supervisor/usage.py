"""Monitors the engines' memory and activity: periodically, and whenever a decision depends on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

import anyio
import anyio.to_thread

from hostler.supervisor.engine_client import engine_activity
from hostler.supervisor.memory import MemoryMeter, differs
from hostler.supervisor.model import ManagedModel

#: Besides this period, engines are measured when they get ready, after their first response and before they stop.
PERIOD_S: Final = 15.0

#: After an engine gets ready its first request goes before its first measurement.
AFTER_READY_S: Final = 0.2

#: Between two polls whether an engine is still busy: see `engine_activity`.
DRAIN_POLL_S: Final = 1.5

logger = logging.getLogger(__name__)


class UsageMonitor:
    """Measures the memory of models' engines, follows their activity, and waits until they are idle.

    `on_change(model, usage_changed, need_changed)` is called for changes of more than 5 %. Without `track_activity`
    activity is only polled on demand. Draining takes at most `drain_s`, unless the profile sets its own limit.
    """

    def __init__(
        self, meter: MemoryMeter, on_change: Callable[[ManagedModel, bool, bool], None], *, track_activity: bool,
        drain_s: float,
    ) -> None:  # fmt: skip
        self._meter = meter
        self._on_change = on_change
        self._track_activity = track_activity
        self._drain_s = drain_s

    async def run(self, models: Callable[[], Iterable[ManagedModel]]) -> None:
        """Measure all models periodically until cancelled."""
        try:
            while True:
                await anyio.sleep(PERIOD_S)
                for model in list(models()):
                    await self.measure(model)
                    if self._track_activity:
                        await self._update_activity(model)
        finally:
            self._meter.close()

    async def measure(self, model: ManagedModel, *, settled: bool = False, delay_s: float = 0.0) -> None:
        """Measure what a model's processes take; `settled` after a response. Never raises."""
        await anyio.sleep(delay_s)
        pid = model.process.pid
        if pid is None:
            return
        try:
            usage = await anyio.to_thread.run_sync(self._meter.measure, pid)
        except Exception:
            # Drivers fail in many ways, none of which may end the host.
            logger.exception("%s: cannot measure memory", model.name)
            return
        if model.process.pid != pid or not usage.rss:
            return
        before, need_before = model.usage, model.lifecycle.memory_need.total
        model.usage = usage
        await model.lifecycle.record_memory(usage, settled=settled)
        usage_changed = differs(before.rss, usage.rss) or differs(before.gpu, usage.gpu)
        need_changed = differs(need_before, model.lifecycle.memory_need.total)
        if usage_changed or need_changed:
            self._on_change(model, usage_changed, need_changed)

    async def update_activity(self, models: Iterable[ManagedModel]) -> None:
        """Ask the engines of all `models` whether they are busy."""
        async with anyio.create_task_group() as polls:
            for model in models:
                polls.start_soon(self._update_activity, model)

    async def drain(self, models: Iterable[ManagedModel], on_busy: Callable[[], None]) -> None:
        """Return when all are idle, gone or out of time. `on_busy` is called while one is busy."""
        async with anyio.create_task_group() as waits:
            for model in models:
                waits.start_soon(self._drain, model, on_busy)

    async def _drain(self, model: ManagedModel, on_busy: Callable[[], None]) -> None:
        own = model.profile.drain_s
        with anyio.move_on_after(self._drain_s if own is None else own):
            while await self._update_activity(model):
                on_busy()
                with anyio.move_on_after(DRAIN_POLL_S):
                    await model.process.wait_ended()

    async def _update_activity(self, model: ManagedModel) -> bool:
        """Whether its engine is busy."""
        address = model.process.address
        if address is None:
            return False
        activity = await engine_activity(address)
        if model.process.generation == address.generation:
            model.update_activity(activity, time.time())
        return model.busy
