"""Monitors the engines' memory and activity, and the GPUs: periodically, and whenever a decision depends on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import anyio
import anyio.to_thread

from hostler.supervisor.contract import DeviceStatus
from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.devices.tracker import DeviceTracker
from hostler.supervisor.engine_client import engine_activity
from hostler.supervisor.memory import MemoryUsage, differs
from hostler.supervisor.memory_meter import Measurement, Meter
from hostler.supervisor.model import ManagedModel

#: Besides this period, engines are measured when they get ready, after their first response and before they stop.
PERIOD_S: Final = 15.0

#: The period where other programs' use of GPUs decides what may be loaded.
DEVICE_PERIOD_S: Final = 5.0

#: After an engine gets ready its first request goes before its first measurement.
AFTER_READY_S: Final = 0.2

#: Between two polls whether an engine is still busy: see `engine_activity`.
DRAIN_POLL_S: Final = 1.5

#: Between two readings while a GPU's memory is being freed, ...
RELEASE_POLL_S: Final = 0.1

#: ... and for how long none is freed before the need is taken for an overestimate.
RELEASE_STILL_S: Final = 0.5

#: How long a measurement may take. A driver that hangs must not hold up switches, or the end of the supervisor.
MEASURE_S: Final = 30.0

#: States in which an engine takes and frees no memory.
_STEADY: Final = ("ready", "stopped", "backoff", "failed")

logger = logging.getLogger(__name__)


class UsageMonitor:
    """Measures the memory of models' engines and of GPUs, follows engines' activity, and waits until they are idle.

    `models` returns all models. `on_change(model, usage_changed, need_changed)` is called for changes of more than 5 %,
    `on_devices(before)` after new readings of GPUs. Without `track_activity` activity is only polled on demand. Draining
    takes at most `drain_s`, unless the profile sets its own limit.
    """

    def __init__(
        self, meter: Meter, devices: DeviceTracker, *, models: Callable[[], Iterable[ManagedModel]],
        on_change: Callable[[ManagedModel, bool, bool], None],
        on_devices: Callable[[tuple[DeviceStatus, ...]], None], track_activity: bool, drain_s: float, release_s: float,
        period_s: float = PERIOD_S,
    ) -> None:  # fmt: skip
        self._meter = meter
        self._devices = devices
        self._models = models
        self._on_change = on_change
        self._on_devices = on_devices
        self._track_activity = track_activity
        self._drain_s = drain_s
        self._release_s = release_s
        self._period_s = period_s
        # Drivers' libraries are not used by two threads at once.
        self._measuring = anyio.Lock()
        self._hangs = False

    async def run(self) -> None:
        """Measure everything now and then periodically until cancelled."""
        try:
            while True:
                await self.measure()
                if self._track_activity:
                    for model in list(self._models()):
                        await self._update_activity(model)
                await anyio.sleep(self._period_s)
        finally:
            self._meter.close()

    async def measure(self, settled: ManagedModel | None = None, *, delay_s: float = 0.0) -> None:
        """Measure what all engines take, and the GPUs; `settled` is one that has just answered. Never raises."""
        await anyio.sleep(delay_s)
        async with self._measuring:
            running = {pid: model for model in self._models() if (pid := model.process.pid) is not None}
            measured = await self._measure_within(MEASURE_S, tuple(running))
            if measured is None:
                return
            for pid, model in running.items():
                usage = measured.usages.get(pid)
                if usage is not None and usage.rss and model.process.pid == pid:
                    await self._apply(model, usage, settled=model is settled)
            self._apply_devices(measured.devices)

    async def _measure_within(self, seconds: float, pids: tuple[int, ...]) -> Measurement | None:
        """What the meter measures; `None` if it fails, takes too long, or has not returned from an earlier call."""
        if self._hangs:
            return None
        self._hangs = True

        def measure() -> Measurement:
            try:
                return self._meter.measure(pids)
            finally:
                self._hangs = False

        try:
            with anyio.move_on_after(seconds):
                return await anyio.to_thread.run_sync(measure, abandon_on_cancel=True)
            logger.error("measuring memory takes longer than %g s; it is suspended until the driver answers", seconds)
        except Exception:
            # Drivers fail in many ways, none of which may end the host.
            logger.exception("cannot measure memory")
        return None

    async def _apply(self, model: ManagedModel, usage: MemoryUsage, *, settled: bool) -> None:
        before, need_before = model.usage, model.lifecycle.memory_need.total
        model.usage = usage
        if not model.process.asleep:
            # Asleep, its weights are elsewhere than while it serves.
            await model.lifecycle.record_memory(usage, settled=settled)
        usage_changed = differs(before.rss, usage.rss) or differs(before.gpu, usage.gpu)
        need_changed = differs(need_before, model.lifecycle.memory_need.total)
        if usage_changed or need_changed:
            self._on_change(model, usage_changed, need_changed)

    def _apply_devices(self, readings: tuple[DeviceReading, ...]) -> None:
        engines: dict[tuple[str, int], Mapping[str, int]] = {}
        steady = True
        for model in self._models():
            process = model.process
            steady = steady and process.state in _STEADY
            # What a sleeping engine still has on a GPU counts as another program's: no budget is planned for it.
            if process.pid is not None and not process.asleep:
                # Drivers do not report every process, for example in containers: the expected amount is used instead.
                engines[model.name, process.generation] = model.usage.devices or model.lifecycle.device_needs
        before = self._devices.statuses
        self._devices.update(readings, engines, time.monotonic(), steady=steady)
        if self._devices.statuses != before:
            self._on_devices(before)

    async def wait_released(self, model: ManagedModel) -> None:
        """Wait until the GPUs have room for `model`: drivers free the memory of an engine some time after its end.

        At most `release_s`, and no longer than memory is being freed.
        """
        least, since = None, time.monotonic()
        with anyio.move_on_after(self._release_s):
            while any(device.used_bytes is not None for device in self._devices.statuses):
                await self.measure()
                missing = self._missing(model.lifecycle.device_needs)
                if not missing:
                    return
                now = time.monotonic()
                if least is None or missing < least:
                    least, since = missing, now
                elif now - since >= RELEASE_STILL_S:
                    return
                await anyio.sleep(RELEASE_POLL_S)

    def _missing(self, needs: Mapping[str, int]) -> int:
        """How much of `needs` is not free, in bytes."""
        missing = 0
        for device in self._devices.statuses:
            if device.total_bytes is not None and device.used_bytes is not None:
                missing += max(0, needs.get(device.name, 0) - (device.total_bytes - device.used_bytes))
        return missing

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
