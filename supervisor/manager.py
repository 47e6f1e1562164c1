"""All engines of one host: carries out orders, one after the other where its rule wants that, and tells what happens."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, cache_directory
from hostler.supervisor.command import parse_port_range
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import (
    EngineAddress,
    HostStatus,
    ModelChanged,
    ModelStatus,
    Snapshot,
    SupervisorError,
    SupervisorEvent,
    UnknownProfile,
)
from hostler.supervisor.events import Subscriptions
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.memory import MemoryMeter, MemoryUsage
from hostler.supervisor.metrics import SupervisorMetrics
from hostler.supervisor.model import ManagedModel, engine_profile
from hostler.supervisor.model_files import Describe, ModelFiles, Prepare, Supply, describe_file, local_path
from hostler.supervisor.process import ManagedProcess, ProcessLimits
from hostler.supervisor.slot_cache import Keeper, SlotKeeper, SlotStore
from hostler.supervisor.state_store import EpochStore, LoadTimeStore, PinStore
from hostler.supervisor.switches import PlacementPolicy, SwitchCoordinator
from hostler.supervisor.usage import AFTER_READY_S, MemoryHistory, UsageMonitor

#: Who follows a host that has just started is told of it when its models' files have been read, or after this long.
DESCRIBED_S: Final = 1.0

logger = logging.getLogger(__name__)


class EngineManager:
    """Keeps the promises of `contract.Supervisor` on this very machine.

    `run` must be running: everything happens in its task group. On an exclusive host one model lives at a time, pinned
    ones beside it; two models' switches never overlap. Else several do, within their budget. Pinned models are started
    by themselves. `metrics` counts what happens.
    """

    def __init__(
        self, profiles: Sequence[Profile], settings: SupervisorSettings, *, host: str = "127.0.0.1",
        prepare: Prepare = local_path, describe: Describe = describe_file,
        keeper: Keeper | None = None, load_times: Path | None = None, pins: Path | None = None,
        footprints: Path | None = None, epochs: Path | None = None, meter: MemoryMeter | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._ports = parse_port_range(settings.engine_ports)
        self._load_times = LoadTimeStore(load_times)
        self._pins = PinStore(pins)
        exclusive = settings.exclusive if settings.exclusive is not None else settings.memory_budget is None
        budget = None if settings.memory_budget is None else int(settings.memory_budget)
        self._room = PlacementPolicy(exclusive=exclusive, budget=budget)
        self._footprints = MemoryHistory(footprints)
        self._survey = UsageMonitor(
            meter or MemoryMeter(), self._footprints, self._measured, uses=not exclusive, drain_s=settings.drain_s
        )
        self._supply = Supply(
            settings, host=settings.engine_host or host, prepare=prepare, describe=describe, keeper=keeper or Keeper(),
            survey=self._survey,
        )  # fmt: skip
        self._epochs = EpochStore(epochs)
        self._tasks: TaskGroup | None = None
        self._started = anyio.Event()
        self._described = anyio.Event()
        self._listeners = Subscriptions(lambda: Snapshot(host=self.status_now()))
        self.metrics = SupervisorMetrics(self.status_now)
        self._listeners.tap(self.metrics.on_event)
        self._orders = SwitchCoordinator(
            self._room, self._supply, self._survey, self._load_times, others=self._others,
            describe=self._describe_sharing, tell=self._listeners.publish,
        )  # fmt: skip
        self._members = {profile.name: self._enlist(profile) for profile in profiles}

    # The contract.

    async def status(self) -> HostStatus:
        """Everything, now."""
        return self.status_now()

    async def switch(self, model: str, *, evict: Sequence[str] = (), epoch: int | None = None) -> EngineAddress:
        """See `contract.Supervisor`."""
        await self._see(epoch)
        member = self._member(model)
        member.used(time.time())
        address = member.process.address
        if address is not None and not self._room.in_the_way(member, self._others(member), evict):
            return address
        return await self._orders.to(member, evict).outcome.get()

    async def unload(self, model: str, *, epoch: int | None = None) -> None:
        """See `contract.Supervisor`. Earlier failures are forgotten with it."""
        await self._see(epoch)
        member = self._member(model)
        self._orders.cancel(model, f'model "{model}" was unloaded')
        await member.process.stop()
        member.process.forgive()

    async def locate(self, model: str) -> EngineAddress | None:
        """Where `model` listens, if it is ready now."""
        return self._member(model).process.address

    async def pull(self, model: str, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        """See `contract.Pulls`."""
        member = self._member(model)
        await self._supply.file(member, report)
        await self._describe_sharing(member)

    async def pin(self, model: str, pinned: bool, *, epoch: int | None = None) -> bool:
        """See `contract.Pins`."""
        await self._see(epoch)
        member = self._member(model)
        self._pins.set(model, pinned, member.profile.pinned)
        self._settle_pin(member)
        self._listeners.publish(Snapshot(host=self.status_now()))
        return await anyio.to_thread.run_sync(self._pins.write)

    async def answered(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        """See `contract.Supervisor`."""
        member = self._member(model)
        if member.process.generation == generation:
            member.used(time.time())
            await self._supply.answered(member, cached=cached, prompt=prompt)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[SupervisorEvent]]:
        """See `contract.Supervisor`."""
        # What clients are told of a model should not change a moment after the start.
        with anyio.move_on_after(DESCRIBED_S):
            await self._described.wait()
        with self._listeners.open() as events:
            yield events

    # More than the contract.

    async def run(self) -> None:
        """Carry out orders until cancelled; then end all engines, side by side, within their grace."""
        await anyio.to_thread.run_sync(self._epochs.read)
        await anyio.to_thread.run_sync(self._load_times.read)
        await anyio.to_thread.run_sync(self._pins.read)
        await anyio.to_thread.run_sync(self._footprints.read)
        for member in self._members.values():
            self._settle_pin(member)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = self._supply.tasks = self._orders.tasks = tasks
                for member in self._members.values():
                    tasks.start_soon(member.run)
                tasks.start_soon(self._describe_all)
                self._started.set()
                for member in self._members.values():
                    if member.pinned:
                        tasks.start_soon(self._start_pinned, member)
                await self._survey.run(lambda: self._members.values())
        finally:
            self._tasks = self._supply.tasks = self._orders.tasks = None

    async def started(self) -> None:
        """Wait until `run` takes orders."""
        await self._started.wait()

    async def logs(self, model: str, follow: bool = False) -> AsyncIterator[str]:
        """The lines that are kept of a model's engines; with `follow` those to come, without an end."""
        log = self._member(model).log
        with log.follow() as fresh:
            for line in log.tail():
                yield line
            if follow:
                async for line in fresh:
                    yield line

    async def replace_profiles(self, profiles: Sequence[Profile]) -> None:
        """Take over new profiles. Engines of unchanged ones run on; others have finished and stopped when this returns.

        An engine is touched only if its command would be another one: see `outdated`, to let its answers finish first.
        """
        wanted = {profile.name: profile for profile in profiles}
        leaving = [self._members[name] for name in self.outdated(profiles)]
        self._pins.keep(wanted)
        pinned = [member for member in leaving if self._pins.get(member.name, _pinned(wanted.get(member.name)))]
        for name, profile in wanted.items():
            member = self._members.get(name)
            if member is None:
                member = self._members[name] = self._enlist(profile)
                if member.pinned:
                    pinned.append(member)
                if self._tasks is not None:
                    self._tasks.start_soon(member.run)
            else:
                before = member.pinned
                member.become(profile)
                self._settle_pin(member)
                if member.pinned and not before:
                    pinned.append(member)
        for name in [name for name in self._members if name not in wanted]:
            self._members[name].retired = True
        async with anyio.create_task_group() as stops:
            for member in leaving:
                stops.start_soon(self._stop_member, member)
        for name in [name for name, member in self._members.items() if member.retired]:
            self._members.pop(name).leave()
        self._members = {name: self._members[name] for name in wanted}
        await self._describe_all()
        if self._tasks is not None:
            for member in dict.fromkeys(pinned):
                self._tasks.start_soon(self._start_pinned, member)

    def outdated(self, profiles: Sequence[Profile]) -> tuple[str, ...]:
        """The models whose engine `replace_profiles` would stop: gone, or run by another command from now on."""
        wanted = {profile.name: profile for profile in profiles}
        return tuple(
            name
            for name, member in self._members.items()
            if name not in wanted or engine_profile(wanted[name]) != engine_profile(member.profile)
        )

    def status_now(self) -> HostStatus:
        """Everything, now; without waiting."""
        members = [member for member in self._members.values() if not member.retired]
        return HostStatus(
            profiles=tuple(member.info(self._load_times.get(member.name)) for member in members),
            models=tuple(self._status(member) for member in members),
            exclusive=self._room.exclusive,
            budget_bytes=self._room.budget,
            epoch=self._epochs.seen,
        )

    # Inside.

    def _others(self, member: ManagedModel) -> list[ManagedModel]:
        return [other for other in self._members.values() if other is not member and other.process.alive]

    async def _start_pinned(self, member: ManagedModel) -> None:
        try:
            await self.switch(member.name)
        except (SupervisorError, UnknownProfile) as error:
            logger.warning("the pinned model %s could not be started: %s", member.name, error)

    async def _stop_member(self, member: ManagedModel) -> None:
        self._orders.cancel(member.name, f'the profile of model "{member.name}" was changed')
        await self._survey.drain([member], lambda: None)
        await member.process.stop()
        member.process.forgive()

    # Values about members.

    async def _see(self, epoch: int | None) -> None:
        self._epochs.admit(epoch)
        if self._epochs.fresh and self._tasks is not None:
            # Once for each start of a gateway; what is carried out after it is remembered to be the new one's.
            await anyio.to_thread.run_sync(self._epochs.write)

    def _member(self, model: str) -> ManagedModel:
        member = self._members.get(model)
        if member is None or member.retired:
            raise UnknownProfile(f'no profile "{model}" on this host; there are: {", ".join(sorted(self._members))}')
        return member

    def _settle_pin(self, member: ManagedModel) -> None:
        """What follows from an operator's word, or from a new profile."""
        member.pinned = self._pins.get(member.name, member.profile.pinned)
        member.process.limits = self._limits(member)

    def _limits(self, member: ManagedModel) -> ProcessLimits:
        settings, profile = self._settings, member.profile
        return ProcessLimits(
            start_timeout_s=_first(profile.start_timeout_s, settings.start_timeout_s),
            stop_grace_s=_first(profile.stop_grace_s, settings.stop_grace_s),
            max_failures=settings.max_failures, backoff_s=settings.backoff_s, max_backoff_s=settings.max_backoff_s,
            stable_s=settings.stable_s, watchdog_s=settings.watchdog_s, keep=member.pinned,
        )  # fmt: skip

    def _enlist(self, profile: Profile) -> ManagedModel:
        member = ManagedModel(profile, EngineLog(self._settings.log_lines))
        member.pinned = self._pins.get(profile.name, profile.pinned)
        member.process = ManagedProcess(
            profile.name, self._supply.hooks(member), self._limits(member), member.log, host=self._supply.host,
            ports=self._ports, changed=self._changed,
        )  # fmt: skip
        return member

    def _changed(self, process: ManagedProcess) -> None:
        member = self._members.get(process.model)
        if member is None or member.process is not process:
            return
        self._orders.hear(process)
        if process.pid is None:
            member.usage = MemoryUsage()
        elif process.state == "ready" and self._tasks is not None:
            self._tasks.start_soon(self._survey.measure, member, False, AFTER_READY_S)
        self._listeners.publish(ModelChanged(status=self._status(member)))

    async def _describe_sharing(self, member: ManagedModel) -> None:
        """Find out what is known of the file of `member`, of all that share it, and tell who listens."""
        for each in [each for each in self._members.values() if each.profile.model == member.profile.model]:
            if each.description.facts is None:
                await self._supply.describe(each)
        self._listeners.publish(Snapshot(host=self.status_now()))

    async def _describe_all(self) -> None:
        for member in list(self._members.values()):
            await self._supply.describe(member)
        self._described.set()
        self._listeners.publish(Snapshot(host=self.status_now()))

    def _measured(self, member: ManagedModel, takes: bool, needs: bool) -> None:
        if takes:
            self._listeners.publish(ModelChanged(status=self._status(member)))
        if needs and self._room.budget is not None:
            # Who makes room elsewhere has to know.
            self._listeners.publish(Snapshot(host=self.status_now()))

    def _status(self, member: ManagedModel) -> ModelStatus:
        process = member.process
        order = self._orders.of(member.name)
        starting = process.state == "starting"
        return ModelStatus(
            model=member.name, state=process.state, since=process.since, generation=process.generation,
            pid=process.pid, percent=order.percent if order is not None and starting else None,
            eta_s=order.eta_s if order is not None and starting else None,
            memory_bytes=member.usage.rss, gpu_bytes=member.usage.gpu, phase_seconds=member.phase_seconds, failure=process.failure,
        )  # fmt: skip


def _pinned(profile: Profile | None) -> bool:
    return profile is not None and profile.pinned


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def create_manager(
    profiles: Sequence[Profile],
    settings: SupervisorSettings,
    *,
    host: str = "127.0.0.1",
    place: str | None = None,
    report: Callable[[FetchProgress], None] = lambda _: None,
    environ: Mapping[str, str] = os.environ,
) -> EngineManager:
    """The fleet of this machine; `EngineManager.run` starts it. `host` is where engines listen unless the settings say so.
    `place` is where the host itself takes orders over HTTP, as `address:port`: what tells it from others of this machine.
    Without one it does not remember over a restart whose orders it took.

    Conversation caches, remembered load times and operators' pins are kept in the cache folder unless the settings name another one.
    Raises `OSError` if the folder cannot be made.
    """
    files = ModelFiles(report=report)
    state = cache_directory(environ)
    keeper = None
    if settings.slots_max > 0:
        folder = Path(settings.slots_dir).expanduser() if settings.slots_dir else state / "slots"
        settings = msgspec.structs.replace(settings, slots_dir=str(folder))
        store = SlotStore(
            folder,
            max_bytes=settings.slots_max,
            max_age_s=settings.slots_max_age_s,
            min_tokens=settings.slots_min_tokens,
        )
        # Before the first engine: it refuses to start with a folder that is not there.
        store.prepare()
        keeper = SlotKeeper(store, files.facts)
    else:
        settings = msgspec.structs.replace(settings, slots_dir=None)
    return EngineManager(
        profiles,
        settings,
        host=host,
        prepare=files.prepare,
        describe=files.describe,
        keeper=keeper,
        load_times=state / "load-times.json",
        footprints=state / "footprints.json",
        pins=state / "pins.json",
        epochs=None if place is None else state / "epochs" / f"{re.sub(r'[^0-9A-Za-z.]+', '-', place)}.json",
    )
