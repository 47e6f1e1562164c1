"""Switches: which models have to stop for another one, and each switch from its request to ready or failed."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Literal, get_args

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from hostler.profiles.sources import FetchProgress
from hostler.supervisor.contract import EngineAddress, Failure, FirstAnswer, SupervisorError, SwitchMoved, SwitchPhase
from hostler.supervisor.engine_process import ManagedProcess
from hostler.supervisor.generation import StartResult
from hostler.supervisor.machine import available_memory
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.placement import PlacementPolicy
from hostler.supervisor.process_state import ProcessPhase
from hostler.supervisor.scheduling.estimates import is_overdue
from hostler.supervisor.sleeping_models import SleepingModels
from hostler.supervisor.spare_memory import SpareMemory
from hostler.supervisor.state_store import LoadTimeStore
from hostler.supervisor.usage import UsageMonitor

#: How often the progress of a load is published.
PROGRESS_PERIOD_S: Final = 0.5

#: From this share on the percentage is left out, unless the load ends in a moment: it would stand still.
NEARLY: Final = 0.985
_LONG_S: Final = 3.0

_ORDER: Final[tuple[SwitchPhase, ...]] = get_args(SwitchPhase)
_LOADING: Final[tuple[SwitchPhase, ...]] = ("starting", "loading", "restoring")

_BY_PROCESS_PHASE: Final[dict[ProcessPhase, SwitchPhase]] = {
    "preparing": "starting", "starting": "starting", "loading": "loading", "restoring": "restoring",
}  # fmt: skip

logger = logging.getLogger(__name__)


class SwitchOperation:
    """A switch in progress. Phases only go forward; each is published once, a load's progress every half second.

    With `overlap` no model stops for it: those that will have not finished their answers yet.
    """

    def __init__(
        self, number: str, model: str, evict: Collection[str], *, expected_s: float | None,
        publish: Callable[[SwitchMoved], None], overlap: bool = False, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.overlap = overlap
        #: Whether the engine was being started already.
        self.joined = False
        self.number = number
        self.model = model
        self.evict = frozenset(evict)
        self.result = StartResult()
        self.scope = anyio.CancelScope()
        self.victims: tuple[str, ...] = ()
        self.load_s = 0.0
        self._expected_s = expected_s
        self._publish = publish
        self._clock = clock
        self._started = self._entered = clock()
        self._phase: SwitchPhase | None = None
        self._phase_seconds: dict[str, float] = {}
        self._loaded: float | None = None
        self._fetched: float | None = None

    def on_process_change(self, process: ManagedProcess) -> None:
        """Follow the process of the requested model, and those that stop for it."""
        if process.model == self.model:
            if process.held:
                return  # until it may load, what it waits for counts
            self._loaded = process.progress
            phase = _BY_PROCESS_PHASE.get(process.phase)
            if phase is not None:
                self.enter(phase)
        elif process.model in self.victims and process.phase in ("saving", "stopping"):
            self.enter("saving" if process.phase == "saving" else "stopping")

    def on_fetch_progress(self, progress: FetchProgress) -> None:
        """Follow the download of the model's file."""
        if progress.phase != "done" and self._phase is None:
            self.enter("fetching")
        self._fetched = progress.completed / progress.total if progress.total else None

    def enter(self, phase: SwitchPhase, failure: Failure | None = None) -> None:
        """Enter a phase and publish it, unless it or a later one was entered before."""
        if self._phase is not None and _ORDER.index(phase) <= _ORDER.index(self._phase):
            return
        now = self._clock()
        if self._phase is not None:
            self._phase_seconds[self._phase] = now - self._entered
        elif now - self._started >= 0.001:
            # Before the first phase it waited for another switch, or for the file.
            self._phase_seconds["waiting"] = now - self._started
        self._phase, self._entered = phase, now
        self._publish(self.event(failure))

    def succeed(self, address: EngineAddress) -> bool:
        """The model is ready. False if the switch was over before."""
        if self.result.settled:
            return False
        self.enter("ready")
        self.load_s = sum(self._phase_seconds.get(phase, 0.0) for phase in _LOADING)
        self.result.settle(address)
        return True

    def fail(self, failure: Failure) -> None:
        """The model cannot be made ready, unless the switch was over before."""
        if self.result.settled:
            return
        self.enter("failed", failure)
        self.result.settle(failure)

    def cancel(self, failure: Failure) -> None:
        """Give up."""
        self.fail(failure)
        self.scope.cancel()

    async def publish_progress(self) -> None:
        """Publish the progress of a download or load periodically until cancelled."""
        while True:
            await anyio.sleep(PROGRESS_PERIOD_S)
            if self._phase == "fetching" or self._phase in _LOADING:
                self._publish(self.event())

    @property
    def phase_seconds(self) -> dict[str, float]:
        """The duration of each finished phase, in seconds."""
        return {phase: round(seconds, 6) for phase, seconds in self._phase_seconds.items()}

    @property
    def percent(self) -> float | None:
        """The fetched or loaded share: by the duration of earlier loads, else as the engine reports it."""
        if self._phase == "ready":
            return 100.0
        if self._phase == "fetching":
            return None if self._fetched is None else 100.0 * self._fetched
        if self._phase not in _LOADING:
            return None
        if not self._expected_s:
            return None if self._loaded is None or self._loaded >= NEARLY else 100.0 * self._loaded
        share = self._loading_s() / self._expected_s
        if share >= NEARLY and self._loading_s() >= min(_LONG_S, self._expected_s + 1.0):
            return None
        return min(99.0, 100.0 * share)

    @property
    def eta_s(self) -> float | None:
        """Seconds until ready, if the duration of earlier loads is known, and not exceeded."""
        if self._phase == "fetching":
            took = self._clock() - self._entered
            return took / self._fetched - took + (self._expected_s or 0.0) if self._fetched else None
        if self._expected_s is None or self.overdue or self._phase in ("ready", "failed"):
            return None
        return max(0.0, self._expected_s - self._loading_s())

    @property
    def overdue(self) -> bool:
        """Whether loading takes longer than usual."""
        return (
            self._expected_s is not None and self._phase in _LOADING and is_overdue(self._loading_s(), self._expected_s)
        )

    def event(self, failure: Failure | None = None) -> SwitchMoved:
        """The current state as an event. Once the switch is over, its time is that of its phases."""
        now = self._entered if self._phase in ("ready", "failed") else self._clock()
        return SwitchMoved(
            id=self.number, model=self.model, phase=self._phase or "draining", from_models=self.victims,
            percent=self.percent, eta_s=self.eta_s, elapsed_s=now - self._started,
            phase_seconds=dict(self._phase_seconds), failure=failure, overdue=self.overdue,
        )  # fmt: skip

    def _loading_s(self) -> float:
        before = sum(self._phase_seconds.get(phase, 0.0) for phase in _LOADING)
        return before + (self._clock() - self._entered if self._phase in _LOADING else 0.0)


class SwitchCoordinator:
    """All switches of a host. They run in `tasks`, which is set while the host runs; on an exclusive host one by one.

    `others` lists the models that are alive besides one, `describe` updates what is known of a model's file, `publish`
    gets each switch's events. `early`: what may be done for a model while those that stop for it are saved. With `start` it
    starts if there is spare memory beside them, else it holds before the weights, if its engine can.
    """

    tasks: TaskGroup | None = None

    def __init__(
        self, policy: PlacementPolicy, usage: UsageMonitor, load_times: LoadTimeStore, *,
        sleeping: SleepingModels, spare: SpareMemory, early: Literal["off", "read", "start"],
        others: Callable[[ManagedModel], list[ManagedModel]], describe: Callable[[ManagedModel], Awaitable[None]],
        publish: Callable[[SwitchMoved], None],
    ) -> None:  # fmt: skip
        self._policy = policy
        self._usage = usage
        self._load_times = load_times
        self._sleeping = sleeping
        self._spare = spare
        self._early = early
        self._others = others
        self._describe = describe
        self._publish = publish
        # The latest switch to each model, which later requests join; and all, since an earlier one may still run.
        self._latest: dict[str, SwitchOperation] = {}
        self._running: set[SwitchOperation] = set()
        #: The last event of each model's last switch, until its first answer.
        self._unanswered: dict[str, SwitchMoved] = {}
        self._eviction = anyio.Lock()

    def request(self, model: ManagedModel, evict: Sequence[str]) -> SwitchOperation:
        """A switch to `model` that stops `evict`: the one in progress if it stops them too, else a new one.

        Raises `SupervisorError` if the host does not run, or no longer has the model.
        """
        switch = self._latest.get(model.name)
        if switch is None or switch.result.settled or not switch.evict.issuperset(evict):
            switch = self._begin(model, evict)
        return switch

    def begin_overlap(self, model: ManagedModel) -> SwitchOperation:
        """Start `model` beside those that will stop for it, or join the switch to it. Raises as `request` does."""
        current = self._latest.get(model.name)
        return self._begin(model, (), overlap=True) if current is None or current.result.settled else current

    def current(self, model: str) -> SwitchOperation | None:
        """The latest switch to `model` that is in progress."""
        return self._latest.get(model)

    def cancel(self, model: str, reason: str) -> None:
        """Cancel all switches to `model`."""
        self._latest.pop(model, None)
        for switch in [switch for switch in self._running if switch.model == model]:
            switch.cancel(Failure(kind="cancelled", message=reason))

    def publish_first_answer(self, model: ManagedModel, answer: FirstAnswer) -> None:
        """Publish the end of the last switch to `model` once more, with its first answer."""
        switch = self._unanswered.pop(model.name, None)
        current = self.current(model.name)
        if switch is not None and (current is None or current.result.settled):
            self._publish(msgspec.structs.replace(switch, first_answer=answer))

    def on_process_change(self, process: ManagedProcess) -> None:
        """Move the switches on that wait for `process`."""
        for switch in list(self._running):
            switch.on_process_change(process)

    def _begin(self, model: ManagedModel, evict: Sequence[str], *, overlap: bool = False) -> SwitchOperation:
        if self.tasks is None or model.retired:
            raise SupervisorError(Failure(kind="cancelled", message="the supervisor is not running"))
        expected_s = self._load_times.get(model.name)
        switch = SwitchOperation(
            secrets.token_hex(6), model.name, evict, expected_s=expected_s, publish=self._publish, overlap=overlap
        )
        self._latest[model.name] = switch
        self._running.add(switch)
        self.tasks.start_soon(self._run, model, switch)
        return switch

    async def _run(self, model: ManagedModel, switch: SwitchOperation) -> None:
        try:
            with switch.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(switch.publish_progress)
                    await self._settle(model, switch)
                    tasks.cancel_scope.cancel()
        finally:
            self._running.discard(switch)
            if self._latest.get(model.name) is switch:
                del self._latest[model.name]
            switch.result.settle(Failure(kind="cancelled", message="the supervisor is stopping"))
        if switch.load_s > 0 and not switch.joined:
            self._load_times.record(model.name, switch.load_s)
            await anyio.to_thread.run_sync(self._load_times.write)

    async def _settle(self, model: ManagedModel, switch: SwitchOperation) -> None:
        try:
            address = await self._make_ready(model, switch)
        except SupervisorError as error:
            switch.fail(error.failure)
        except Exception as error:
            # A broken disk or file costs this switch, not the host.
            logger.exception("%s: switch failed", model.name)
            switch.fail(Failure(kind="exited", message=f'starting model "{model.name}" failed: {error}'))
        else:
            self._succeed(model, switch, address)

    def _succeed(self, model: ManagedModel, switch: SwitchOperation, address: EngineAddress) -> None:
        if not switch.succeed(address):
            return
        self._unanswered[model.name] = switch.event()
        model.phase_seconds = switch.phase_seconds
        phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in model.phase_seconds.items())
        logger.info("%s: ready after %.3f s (%s)", model.name, sum(model.phase_seconds.values()), phases or "was ready")

    async def _make_ready(self, model: ManagedModel, switch: SwitchOperation) -> EngineAddress:
        # A file that cannot be fetched must not cost the model that runs now.
        await model.lifecycle.fetch_file(switch.on_fetch_progress)
        description = model.lifecycle.description
        # The header of a file that was just downloaded replaces the description without it.
        if description.facts is None and (self._policy.needs_sizes or not description.modified_at):
            await self._describe(model)
        if switch.overlap:
            return await model.process.request_start().wait()
        async with self._eviction:
            switch.joined = model.process.staying or model.process.asleep
            began = await self._evict(model, switch)
            early = began is not None and began.may_load.is_set()
            if began is None:
                began = model.process.request_start()
            began.may_load.set()
            switch.on_process_change(model.process)
            if self._policy.capacity.exclusive:
                return await self._wait_started(model, began, early=early)
        return await self._wait_started(model, began, early=early)

    async def _wait_started(self, model: ManagedModel, result: StartResult, *, early: bool) -> EngineAddress:
        """Wait until it is ready. If it began `early` and lacked memory it is started once more."""
        try:
            return await result.wait()
        except SupervisorError as error:
            if not early or not self._spare.excuse(model, error.failure):
                raise
        await self._usage.wait_released(model)
        return await model.process.ensure_ready()

    async def _evict(self, model: ManagedModel, switch: SwitchOperation) -> StartResult | None:
        """Stop, side by side, all that may not run beside `model`, and drain those that the scheduler has not drained.

        Returns the start of `model` if that began before they were gone; without room for it, it holds.
        """
        victims = self._policy.victims(model, self._others(model), switch.evict)
        if _undrained(victims, switch):
            # Which of them was used last is known only to the engines.
            await self._usage.update_activity(self._others(model))
            victims = self._policy.victims(model, self._others(model), switch.evict)
        switch.victims = tuple(victim.name for victim in victims)
        sleepers = self._sleeping.may_sleep(model, victims)
        if not victims:
            await self._end_sleeping(model, sleepers)
            return None
        # A file that was damaged since the last look must not cost the models that run now.
        await model.lifecycle.check_file()
        if not model.process.staying:
            model.lifecycle.begin_read_ahead(available_memory())
        await self._usage.drain(_undrained(victims, switch), lambda: switch.enter("draining"))
        switch.enter("saving" if any(victim.process.address for victim in victims) else "stopping")
        await self._end_sleeping(model, sleepers)
        stays = model.process.staying
        began = None if stays else await self._begin_start(model)
        try:
            async with anyio.create_task_group() as stops:
                for victim in victims:
                    stops.start_soon(partial(victim.process.stop, sleep=victim.name in sleepers))
                if began is not None and began.may_load.is_set():
                    # Its requests need not wait until the others are saved.
                    with suppress(SupervisorError):
                        self._succeed(model, switch, await began.wait())
            if not stays and (began is None or not began.may_load.is_set()):
                await self._usage.wait_released(model)
        except BaseException as error:
            # One that serves by now stays, whatever happens to the others, unless its switch was cancelled.
            serves = switch.result.settled and isinstance(error, Exception)
            if not stays and not serves:
                model.process.request_stop()
            raise
        return began

    async def _begin_start(self, model: ManagedModel) -> StartResult | None:
        """Start it beside those that stop, if there is room; if not, up to the weights, as far as its engine can hold there."""
        if self._early == "start" and await self._spare.holds(model):
            logger.info("%s: starting while others are saved and stopped", model.name)
            return model.process.request_start()
        if self._early != "off" and model.lifecycle.can_hold and not model.process.asleep:
            return model.process.request_start(held=True)
        return None

    async def _end_sleeping(self, model: ManagedModel, staying: Collection[str]) -> None:
        """End the engines that sleep in memory which `model` and those of `staying` need."""
        async with anyio.create_task_group() as stops:
            for each in self._sleeping.asleep_besides(model, staying):
                logger.info("%s: no longer sleeps, %s needs its memory", each.name, model.name)
                stops.start_soon(each.process.stop)


def _undrained(victims: Sequence[ManagedModel], switch: SwitchOperation) -> list[ManagedModel]:
    return [each for each in victims if each.name not in switch.evict and each.process.address is not None]
