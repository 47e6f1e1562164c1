"""The supervisor of this machine: all models of one host, and the switches between them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from hostler.profiles.file_reading import home_path
from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, cache_directory
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import (
    DevicesRead,
    DeviceStatus,
    EngineAddress,
    FirstAnswer,
    HostStatus,
    ModelChanged,
    ModelLease,
    ModelStatus,
    PromptIdentity,
    SlotAssignment,
    Snapshot,
    SupervisorEvent,
)
from hostler.supervisor.devices.tracker import DeviceTracker
from hostler.supervisor.engine_client import engine_activity
from hostler.supervisor.engine_lifecycle import EngineLifecycle, EngineServices
from hostler.supervisor.engine_port import parse_port_range
from hostler.supervisor.engine_process import ManagedProcess
from hostler.supervisor.events import Subscriptions
from hostler.supervisor.first_starts import FirstStarts
from hostler.supervisor.kept_models import KeptModels
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.machine import available_memory
from hostler.supervisor.managed_models import ManagedModels
from hostler.supervisor.memory import MemoryHistory, MemoryUsage
from hostler.supervisor.memory_meter import MemoryMeter, Meter
from hostler.supervisor.metrics import SupervisorMetrics
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.model_descriptions import ModelDescriptions
from hostler.supervisor.model_files import (
    DescribeFile,
    DownloadedFiles,
    ModelFiles,
    PrepareFile,
    describe_file,
    local_path,
)
from hostler.supervisor.next_model import NextModel
from hostler.supervisor.placement import PlacementPolicy, capacity_of
from hostler.supervisor.process_limits import limits_of
from hostler.supervisor.sleeping_models import SleepingModels
from hostler.supervisor.slot_cache import SlotCache
from hostler.supervisor.spare_memory import SpareMemory
from hostler.supervisor.state_store import LoadTimeStore, StateFiles
from hostler.supervisor.switches import SwitchCoordinator
from hostler.supervisor.usage import AFTER_READY_S, DEVICE_PERIOD_S, PERIOD_S, UsageMonitor

#: How long the first engines wait for a reading of the GPUs, in seconds.
FIRST_READING_S: Final = 3.0

logger = logging.getLogger(__name__)


class EngineManager:
    """`contract.Supervisor` for the engines of this machine. Everything happens in the task group of `run`.

    On an exclusive host one model runs at a time, pinned ones beside it, and switches never overlap. Else several run,
    within the budgets of memory and GPUs. Pinned models, and those to preload, start without a request. `metrics` counts
    starts, failures and switches.
    """

    def __init__(
        self, profiles: Sequence[Profile], settings: SupervisorSettings, *, host: str = "127.0.0.1",
        prepare: PrepareFile = local_path, describe: DescribeFile = describe_file,
        slots: SlotCache | None = None, state: StateFiles | None = None, meter: Meter | None = None,
        free_memory: Callable[[], int] = available_memory,
    ) -> None:  # fmt: skip
        state = state or StateFiles()
        self._settings = settings
        self._ports = parse_port_range(settings.engine_ports)
        self._load_times = LoadTimeStore(state.load_times)
        self._models = ManagedModels(self._create)
        self._generation = time.time_ns() // 1_000_000
        self._memory = MemoryHistory(state.memory)
        self._files = ModelFiles(prepare, describe)
        self._devices = DeviceTracker(settings.devices, yield_to_others=settings.yield_to_others)
        self._services = EngineServices(
            settings=settings, host=settings.engine_host or host, files=self._files, memory=self._memory, slots=slots,
            devices=lambda: self._devices.statuses, wait_released=self._wait_released,
        )  # fmt: skip
        self._policy = PlacementPolicy(capacity_of(settings, self._devices.statuses))
        self._usage = UsageMonitor(
            meter or MemoryMeter(), self._devices, models=self._models.all, on_change=self._on_memory_change,
            on_devices=self._on_devices_read, track_activity=not self._policy.capacity.exclusive,
            drain_s=settings.drain_s, release_s=settings.release_s,
            period_s=DEVICE_PERIOD_S if settings.devices or settings.yield_to_others else PERIOD_S,
        )  # fmt: skip
        self._tasks: TaskGroup | None = None
        self._started = anyio.Event()
        self._subscriptions = Subscriptions(self._snapshot)
        self.metrics = SupervisorMetrics(self.status_now)
        self._subscriptions.add_listener(self.metrics.on_event)
        self._descriptions = ModelDescriptions(self._models.all, self._services.programs, self._publish_snapshot)
        starts = FirstStarts(
            self._models.all, switch=self.switch, describe=self._descriptions.describe_shared_file,
            is_crowded=lambda model: bool(self._policy.victims(model, self._models.others(model), ())),
        )  # fmt: skip
        self._kept = KeptModels(self._models, state, settings, starts=starts, publish=self._publish_snapshot)
        sleeping = SleepingModels(self._policy, self._models.all, free_memory)
        spare = SpareMemory(
            self._policy, sleeping, others=self._models.others, devices=lambda: self._devices.statuses,
            free_memory=free_memory,
        )  # fmt: skip
        self._switches = SwitchCoordinator(
            self._policy, self._usage, self._load_times, sleeping=sleeping, spare=spare, early=settings.prepare_next,
            others=self._models.others, describe=self._descriptions.describe_shared_file,
            publish=self._subscriptions.publish,
        )  # fmt: skip
        self._next = NextModel(settings.prepare_next, self._switches, spare, others=self._models.others)
        for profile in profiles:
            self._models.add(profile)

    # The contract.

    async def status(self) -> HostStatus:
        """See `contract.Supervisor`."""
        return self.status_now()

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        """See `contract.Supervisor`."""
        managed = self._models.get(model)
        managed.mark_used(time.time())
        address = managed.process.address
        if address is not None and not self._policy.must_evict(managed, self._models.others(managed), evict):
            return address
        return await self._switches.request(managed, evict).result.wait()

    async def unload(self, model: str) -> None:
        """See `contract.Supervisor`. Forgets earlier failures."""
        managed = self._models.get(model)
        self._switches.cancel(model, f'model "{model}" was unloaded')
        await managed.process.stop()
        managed.process.reset_failures()

    async def locate(self, model: str) -> EngineAddress | None:
        """See `contract.Supervisor`."""
        return self._models.get(model).process.address

    async def active_requests(self, model: str, generation: int) -> int | None:
        """See `contract.Supervisor`."""
        managed = self._models.find(model)
        address = None if managed is None else managed.process.address
        if address is None or address.generation != generation:
            return 0
        activity = await engine_activity(address)
        return None if activity is None else activity.requests

    async def prepare_next(self, model: str | None, *, start: bool) -> None:
        """See `contract.SupportsPreparing`."""
        await self._next.prepare(None if model is None else self._models.get(model), start=start)

    async def pull(self, model: str, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        """See `contract.SupportsPulling`."""
        managed = self._models.get(model)
        await managed.lifecycle.fetch_file(report)
        await self._descriptions.describe_shared_file(managed)

    async def pin(self, model: str, pinned: bool) -> bool:
        """See `contract.SupportsPinning`."""
        return await self._kept.pin(self._models.get(model), pinned)

    async def drain(self, draining: bool) -> bool:
        """See `contract.SupportsDraining`."""
        return await self._kept.drain(draining)

    async def add_lease(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        """See `contract.SupportsModelLeases`."""
        return await self._kept.add_lease(self._models.get(model), holder, seconds)

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        """See `contract.SupportsModelLeases`."""
        return await self._kept.end_lease(lease_id)

    async def report_first_response(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        """See `contract.Supervisor`."""
        managed = self._models.get(model)
        if managed.process.generation == generation:
            managed.mark_used(time.time())
            await managed.lifecycle.record_first_response(cached=cached, prompt=prompt)
            self._switches.publish_first_answer(managed, FirstAnswer(prompt=prompt, cached=cached))
            self._subscriptions.publish(ModelChanged(status=self._model_status(managed)))
            # Engines take their memory while they work: only now does a measurement show how much.
            await self._usage.measure(managed)

    def assign_slot(self, model: str, generation: int, prompt: PromptIdentity) -> SlotAssignment | None:
        """See `contract.SupportsSlots`."""
        managed = self._models.find(model)
        return None if managed is None else managed.lifecycle.assign_slot(generation, prompt)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[SupervisorEvent]]:
        """See `contract.Supervisor`."""
        # Wait, so that the models' details do not change a moment after the start.
        await self._descriptions.described()
        with self._subscriptions.open() as events:
            yield events

    # Beyond the contract.

    async def run(self) -> None:
        """Serve until cancelled; then end all engines, side by side, within their grace periods."""
        for read in (self._load_times.read, self._memory.read):
            await anyio.to_thread.run_sync(read)
        await self._kept.read()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = self._kept.tasks = self._files.tasks = self._switches.tasks = tasks
                for model in self._models.all():
                    tasks.start_soon(model.run)
                tasks.start_soon(self._descriptions.describe)
                tasks.start_soon(self._descriptions.recheck_disabled, self._kept.start_again)
                tasks.start_soon(self._kept.expire_leases)
                self._started.set()
                tasks.start_soon(self._start_first)
                await self._usage.run()
        finally:
            self._tasks = self._kept.tasks = self._files.tasks = self._switches.tasks = None

    def kill_engines(self) -> None:
        """End all engines at once. What they would still save is lost."""
        for model in self._models.all():
            model.process.kill()

    async def started(self) -> None:
        """Wait until `run` accepts requests."""
        await self._started.wait()

    async def logs(self, model: str, follow: bool = False) -> AsyncIterator[str]:
        """The buffered log lines of a model's engines; with `follow` future ones, too, without end."""
        log = self._models.get(model).log
        with log.follow() as fresh:
            for line in log.tail():
                yield line
            if follow:
                async for line in fresh:
                    yield line

    def is_fetching(self) -> bool:
        """Whether the file of a model is being fetched."""
        return self._files.fetching

    async def replace_profiles(self, profiles: Sequence[Profile]) -> None:
        """Apply new profiles. Engines in `outdated` have been drained and stopped when this returns."""
        wanted = {profile.name: profile for profile in profiles}
        leaving = self._models.outdated(profiles)
        await self._kept.forget_others(wanted)
        to_start = [model for model in leaving if self._kept.keeps(model.name, wanted.get(model.name))]
        for name, profile in wanted.items():
            model = self._models.find(name)
            if model is None:
                model = self._models.add(profile)
                pinned_before = False
                if self._tasks is not None:
                    self._tasks.start_soon(model.run)
            else:
                pinned_before = model.pinned
                model.lifecycle.replace_profile(profile)
                self._kept.apply(model)
            if model.pinned and not pinned_before:
                to_start.append(model)
        self._models.retire_others(wanted)
        async with anyio.create_task_group() as stops:
            for model in leaving:
                stops.start_soon(self._drain_and_stop, model)
        self._models.remove_retired(order=tuple(wanted))
        await self._descriptions.describe()
        self._kept.start(to_start)

    def outdated(self, profiles: Sequence[Profile]) -> tuple[str, ...]:
        """The models whose engine `replace_profiles` would stop: removed, or started by another command from now on."""
        return tuple(model.name for model in self._models.outdated(profiles))

    def is_loaded(self, model: str) -> bool:
        """Whether an engine of this model runs. Safe from threads."""
        managed = self._models.find(model)
        return managed is not None and (managed.process.alive or managed.process.asleep)

    def status_now(self) -> HostStatus:
        """`status` without waiting."""
        settings = self._settings
        models = [model for model in self._models.all() if not model.retired]
        return HostStatus(
            profiles=tuple(model.info() for model in models),
            models=tuple(self._model_status(model) for model in models),
            exclusive=self._policy.capacity.exclusive,
            budget_bytes=self._policy.capacity.budget_bytes,
            devices=self._devices.statuses,
            groups=tuple(settings.groups.values()),
            sets=settings.sets,
            return_to_default_s=settings.return_to_default_s,
            leases=self._kept.leases,
            generation=self._generation,
            programs=self._services.programs.known(),
            draining=self._kept.draining,
        )

    # Models.

    def _create(self, profile: Profile) -> ManagedModel:
        lifecycle = EngineLifecycle(profile, self._services)
        pinned = self._kept.pins(profile)
        model = ManagedModel(
            lifecycle, EngineLog(self._settings.log_lines), limits_of(profile, self._settings, keep=pinned),
            host=self._services.host, ports=self._ports, on_change=self._on_process_change,
            expected_load_s=lambda: self._load_times.get(profile.name),
        )  # fmt: skip
        model.pinned = pinned
        return model

    async def _start_first(self) -> None:
        # Which GPUs an engine sees depends on the first reading.
        with anyio.move_on_after(FIRST_READING_S):
            await self._usage.measure()
        await self._kept.start_first()

    async def _drain_and_stop(self, model: ManagedModel) -> None:
        self._switches.cancel(model.name, f'the profile of model "{model.name}" was changed')
        await self._usage.drain([model], lambda: None)
        await model.process.stop()
        model.process.reset_failures()

    # Events.

    def _on_process_change(self, process: ManagedProcess) -> None:
        model = self._models.find(process.model)
        if model is None or model.process is not process:
            return
        self._switches.on_process_change(process)
        if process.pid is None:
            model.usage = MemoryUsage()
        elif self._tasks is not None:
            if process.state == "ready":
                self._tasks.start_soon(lambda: self._usage.measure(delay_s=AFTER_READY_S))
            elif process.phase == "saving":
                self._tasks.start_soon(self._usage.measure)
        self._subscriptions.publish(ModelChanged(status=self._model_status(model)))

    def _on_memory_change(self, model: ManagedModel, usage_changed: bool, need_changed: bool) -> None:
        if usage_changed:
            self._subscriptions.publish(ModelChanged(status=self._model_status(model)))
        if need_changed and self._policy.needs_sizes:
            # Victims are chosen by the needs of profiles.
            self._publish_snapshot()

    def _on_devices_read(self, before: tuple[DeviceStatus, ...]) -> None:
        devices = self._devices.statuses
        self._policy.capacity = capacity_of(self._settings, devices)
        if [(each.name, each.total_bytes) for each in before] != [(each.name, each.total_bytes) for each in devices]:
            # The needs of profiles are split over the devices that there are.
            self._publish_snapshot()
        self._subscriptions.publish(DevicesRead(devices=devices))

    async def _wait_released(self, name: str) -> None:
        model = self._models.find(name)
        if model is not None:
            await self._usage.wait_released(model)

    # Status.

    def _publish_snapshot(self) -> None:
        self._subscriptions.publish(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return Snapshot(host=self.status_now())

    def _model_status(self, model: ManagedModel) -> ModelStatus:
        switch = self._switches.current(model.name) if model.process.state == "starting" else None
        percent, eta_s = (None, None) if switch is None else (switch.percent, switch.eta_s)
        return model.status(percent=percent, eta_s=eta_s)


def create_manager(
    profiles: Sequence[Profile],
    settings: SupervisorSettings,
    *,
    host: str = "127.0.0.1",
    report: Callable[[FetchProgress], None] = lambda _: None,
    environ: Mapping[str, str] = os.environ,
) -> EngineManager:
    """The manager of this machine, with downloads, saved slots and state in the cache folder.

    Engines listen on `host` unless the settings name another address. `report` gets the progress of downloads. Raises
    `OSError` if the folder for slots cannot be created.
    """
    files = DownloadedFiles(report=report)
    folder = cache_directory(environ)
    slots = None
    if settings.slots_max > 0:
        slots_dir = home_path(settings.slots_dir) if settings.slots_dir else folder / "slots"
        settings = msgspec.structs.replace(settings, slots_dir=str(slots_dir))
        slots = SlotCache(
            slots_dir,
            max_bytes=settings.slots_max,
            max_age_s=settings.slots_max_age_s,
            min_tokens=settings.slots_min_tokens,
            read_facts=files.facts,
        )
        # Engines refuse to start without this folder.
        slots.prepare()
    else:
        settings = msgspec.structs.replace(settings, slots_dir=None)
    return EngineManager(
        profiles,
        settings,
        host=host,
        prepare=files.prepare,
        describe=files.describe,
        slots=slots,
        state=StateFiles.in_folder(folder),
    )
