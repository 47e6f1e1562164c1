"""All orders to make models ready that are under way on a host: which of them join, and how one is carried out."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, get_args

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from hostler.profiles.sources import FetchProgress
from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError, SwitchMoved, SwitchPhase
from hostler.supervisor.memory import MemoryClaim, choose_evictions, does_not_fit, fits
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.model_files import Supply
from hostler.supervisor.process import ManagedProcess, ProcessPhase, StartResult
from hostler.supervisor.state_store import LoadTimeStore
from hostler.supervisor.usage import UsageMonitor

#: How often the progress of a load is told.
TICK_S: Final = 0.5

_ORDER: Final[tuple[SwitchPhase, ...]] = get_args(SwitchPhase)

_OF_TARGET: Final[dict[ProcessPhase, SwitchPhase]] = {
    "preparing": "starting", "starting": "starting", "loading": "loading", "restoring": "restoring",
}  # fmt: skip


class SwitchOperation:
    """A switch under way. Phases only ever go forward; each is told once, a load's progress every half second."""

    def __init__(
        self, number: str, model: str, evict: Collection[str], *, expected_s: float | None,
        tell: Callable[[SwitchMoved], None],
    ) -> None:  # fmt: skip
        self.number = number
        self.model = model
        self.evict = frozenset(evict)
        self.outcome = StartResult()
        self.scope = anyio.CancelScope()
        self.victims: tuple[str, ...] = ()
        self.load_s = 0.0
        self._expected_s = expected_s
        self._tell = tell
        self._began = self._entered = time.monotonic()
        self._phase: SwitchPhase | None = None
        self._phase_seconds: dict[str, float] = {}
        self._progress: float | None = None
        self._fetched: float | None = None

    def hear(self, process: ManagedProcess) -> None:
        """Some process changed: it may be the one that is wanted, or one that has to go for it."""
        if process.model == self.model:
            self._progress = process.progress
            phase = _OF_TARGET.get(process.phase)
            if phase is not None:
                self.enter(phase)
        elif process.model in self.victims and process.phase in ("saving", "stopping"):
            self.enter("saving" if process.phase == "saving" else "stopping")

    def fetching(self, progress: FetchProgress) -> None:
        """The model's file is being fetched."""
        if progress.phase != "done" and self._phase is None:
            self.enter("fetching")
        self._fetched = progress.completed / progress.total if progress.total else None

    def enter(self, phase: SwitchPhase, failure: Failure | None = None) -> None:
        """The next phase; an earlier one or the same is ignored."""
        if self._phase is not None and _ORDER.index(phase) <= _ORDER.index(self._phase):
            return
        now = time.monotonic()
        if self._phase is not None:
            self._phase_seconds[self._phase] = now - self._entered
        elif now - self._began >= 0.001:
            # Before the first phase it waited for its turn, or for the file to be there.
            self._phase_seconds["waiting"] = now - self._began
        self._phase, self._entered = phase, now
        self._tell(self.moved(failure))

    def done(self, address: EngineAddress) -> None:
        """It is ready."""
        self.enter("ready")
        self.load_s = sum(self._phase_seconds.get(phase, 0.0) for phase in ("starting", "loading", "restoring"))
        self.outcome.settle(address)

    def fail(self, failure: Failure) -> None:
        """It cannot be had."""
        self.enter("failed", failure)
        self.outcome.settle(failure)

    def cancel(self, failure: Failure) -> None:
        """Nobody wants it any more."""
        self.fail(failure)
        self.scope.cancel()

    async def tick(self) -> None:
        """Tell how far the load is, every now and then, for ever."""
        while True:
            await anyio.sleep(TICK_S)
            if self._phase in ("fetching", "starting", "loading", "restoring"):
                self._tell(self.moved())

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Where the time went so far: finished phases, in seconds."""
        return {phase: round(seconds, 6) for phase, seconds in self._phase_seconds.items()}

    @property
    def percent(self) -> float | None:
        """How much is fetched, or loaded: by the time it took before, else by what the engine says."""
        if self._phase == "ready":
            return 100.0
        if self._phase == "fetching":
            return None if self._fetched is None else 100.0 * self._fetched
        if self._phase not in ("starting", "loading", "restoring"):
            return None
        if self._expected_s:
            return min(99.0, 100.0 * self._loading_s() / self._expected_s)
        return None if self._progress is None else min(99.0, 100.0 * self._progress)

    @property
    def eta_s(self) -> float | None:
        """Seconds until ready, if loads of this model are known to take a certain time."""
        if self._phase == "fetching":
            took = time.monotonic() - self._entered
            return took / self._fetched - took + (self._expected_s or 0.0) if self._fetched else None
        if self._expected_s is None or self._phase in ("ready", "failed"):
            return None
        return max(0.0, self._expected_s - self._loading_s())

    def moved(self, failure: Failure | None = None) -> SwitchMoved:
        """The order as an event, as it is now."""
        return SwitchMoved(
            id=self.number, model=self.model, phase=self._phase or "draining", from_models=self.victims,
            percent=self.percent, eta_s=self.eta_s, elapsed_s=time.monotonic() - self._began,
            phase_seconds=dict(self._phase_seconds), failure=failure,
        )  # fmt: skip

    def _loading_s(self) -> float:
        before = sum(self._phase_seconds.get(phase, 0.0) for phase in ("starting", "loading", "restoring"))
        now = time.monotonic() - self._entered if self._phase in ("starting", "loading", "restoring") else 0.0
        return before + now


class PlacementPolicy:
    """`exclusive`: one model at a time, pinned ones beside it. Else as many as fit into `budget` bytes (`None`: any number)."""

    def __init__(self, *, exclusive: bool, budget: int | None) -> None:
        self.exclusive = exclusive
        self.budget = budget

    def victims(
        self, wanted: ManagedModel, others: Sequence[ManagedModel], evict: Collection[str]
    ) -> list[ManagedModel]:
        """Who of `others`, which are all alive, is to be stopped before `wanted` starts.

        The gateway has named and drained those of `evict`. Beyond them idle ones go, the longest unused first, and if
        that is not enough those that are at work; pinned ones never. Raises `SupervisorError` if it cannot fit even then.
        """
        if self.exclusive:
            return [other for other in others if other.name in evict or not (other.pinned or wanted.pinned)]
        names = {other.name for other in others if other.name in evict}
        need = wanted.need
        if self.budget is None or wanted.process.standing:
            pass
        elif not fits(need, budget=self.budget, used=sum(each.need.total for each in others if each.name not in names)):
            # What is on its way out holds its memory until it is gone, which is waited for only if it is needed.
            names.update(other.name for other in others if not other.process.standing)
            staying = [other for other in others if other.name not in names]
            claims = [
                MemoryClaim(
                    name=other.name,
                    bytes=other.need.total,
                    idle_since=other.idle_since,
                    busy=other.busy,
                    pinned=other.pinned,
                )
                for other in staying
            ]
            chosen = choose_evictions(need, claims, self.budget)
            if chosen is None:
                chosen = choose_evictions(
                    need, [msgspec.structs.replace(claim, busy=False) for claim in claims], self.budget
                )
            if chosen is None:
                pinned = [claim for claim in claims if claim.pinned]
                beside = [] if not fits(need, budget=self.budget) else [claim.name for claim in pinned]
                raise SupervisorError(does_not_fit(wanted.profile, need, self.budget, beside=beside))
            names.update(chosen)
        return [other for other in others if other.name in names]

    def in_the_way(self, wanted: ManagedModel, others: Sequence[ManagedModel], evict: Collection[str]) -> bool:
        """Whether somebody has to be stopped although `wanted` is ready."""
        return any(
            other.process.standing
            and (other.name in evict or (self.exclusive and not other.pinned and not wanted.pinned))
            for other in others
        )


logger = logging.getLogger(__name__)


class SwitchCoordinator:
    """Orders run in `tasks`, which is there as long as the host runs. On an exclusive host none overlaps another's.

    `others` says who else is alive, `describe` finds out what a file says that came only now; `tell` hears of phases.
    """

    tasks: TaskGroup | None = None

    def __init__(
        self, room: PlacementPolicy, supply: Supply, survey: UsageMonitor, load_times: LoadTimeStore, *,
        others: Callable[[ManagedModel], list[ManagedModel]], describe: Callable[[ManagedModel], Awaitable[None]],
        tell: Callable[[SwitchMoved], None],
    ) -> None:  # fmt: skip
        self._room = room
        self._supply = supply
        self._survey = survey
        self._load_times = load_times
        self._others = others
        self._describe = describe
        self._tell = tell
        # The newest one for each model, which others join; and all, since an earlier one may still be at work.
        self._newest: dict[str, SwitchOperation] = {}
        self._under_way: set[SwitchOperation] = set()
        self._turn = anyio.Lock()

    def to(self, member: ManagedModel, evict: Sequence[str]) -> SwitchOperation:
        """The order to make `member` ready in place of `evict`: the one under way, if it does as much, or a new one.

        Raises `SupervisorError` if the host does not run, or the member has gone from it.
        """
        order = self._newest.get(member.name)
        if order is None or order.outcome.settled or not order.evict.issuperset(evict):
            order = self._begin(member, evict)
        return order

    def of(self, model: str) -> SwitchOperation | None:
        """The newest order for the model, while it is under way."""
        return self._newest.get(model)

    def cancel(self, model: str, why: str) -> None:
        """Nobody wants it any more, whoever asked for it."""
        self._newest.pop(model, None)
        for order in [order for order in self._under_way if order.model == model]:
            order.cancel(Failure(kind="cancelled", message=why))

    def hear(self, process: ManagedProcess) -> None:
        """Some process changed: orders that wait for it move on."""
        for order in list(self._under_way):
            order.hear(process)

    def _begin(self, member: ManagedModel, evict: Sequence[str]) -> SwitchOperation:
        if self.tasks is None or member.retired:
            raise SupervisorError(Failure(kind="cancelled", message="the supervisor is not running"))
        order = SwitchOperation(
            secrets.token_hex(6), member.name, evict, expected_s=self._load_times.get(member.name), tell=self._tell
        )
        self._newest[member.name] = order
        self._under_way.add(order)
        self.tasks.start_soon(self._carry_out, member, order)
        return order

    async def _carry_out(self, member: ManagedModel, order: SwitchOperation) -> None:
        try:
            with order.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(order.tick)
                    await self._fulfil(member, order)
                    tasks.cancel_scope.cancel()
        finally:
            self._under_way.discard(order)
            if self._newest.get(member.name) is order:
                del self._newest[member.name]
            order.outcome.settle(Failure(kind="cancelled", message="the supervisor is stopping"))
        if order.load_s > 0:
            self._load_times.learn(member.name, order.load_s)
            await anyio.to_thread.run_sync(self._load_times.write)

    async def _fulfil(self, member: ManagedModel, order: SwitchOperation) -> None:
        try:
            address = await self._make_ready(member, order)
        except SupervisorError as error:
            order.fail(error.failure)
        except Exception as error:
            # Whatever a disk or a file may do to us: it costs this order, not the host.
            logger.exception("model %s could not be started", member.name)
            order.fail(Failure(kind="exited", message=f'starting model "{member.name}" failed: {error}'))
        else:
            order.done(address)
            member.phase_seconds = order.phase_seconds
            where = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in member.phase_seconds.items())
            logger.info(
                "%s is ready after %.3f s (%s)", member.name, sum(member.phase_seconds.values()), where or "it was"
            )

    async def _make_ready(self, member: ManagedModel, order: SwitchOperation) -> EngineAddress:
        # A file that cannot be had must not cost the model that runs now.
        await self._supply.file(member, order.fetching)
        described = member.description
        # A file that came only now says more than was known without it.
        if described.facts is None and (self._room.budget is not None or not described.modified_at):
            await self._describe(member)
        async with self._turn:
            await self._clear_the_way(member, order)
            outcome = member.process.order()
            if self._room.exclusive:
                return await outcome.get()
        return await outcome.get()

    async def _clear_the_way(self, member: ManagedModel, order: SwitchOperation) -> None:
        """Stop, side by side, all that may not live beside `member`, and let those finish that nobody has drained."""
        victims = self._room.victims(member, self._others(member), order.evict)
        if _undrained(victims, order):
            # Which of them has been used last is known only to themselves.
            await self._survey.look_at(self._others(member))
            victims = self._room.victims(member, self._others(member), order.evict)
        order.victims = tuple(victim.name for victim in victims)
        if not victims:
            return
        if not member.process.standing:
            self._supply.read_ahead(member)
        await self._survey.drain(_undrained(victims, order), lambda: order.enter("draining"))
        order.enter("saving" if any(victim.process.address for victim in victims) else "stopping")
        async with anyio.create_task_group() as stops:
            for victim in victims:
                stops.start_soon(victim.process.stop)


def _undrained(victims: Sequence[ManagedModel], order: SwitchOperation) -> list[ManagedModel]:
    return [each for each in victims if each.name not in order.evict and each.process.address is not None]
