"""All orders to make models ready that are under way on a host: which of them join, and how one is carried out."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError, SwitchMoved
from hostler.supervisor.loadtimes import LoadTimes
from hostler.supervisor.member import Member
from hostler.supervisor.order import Order
from hostler.supervisor.process import ManagedProcess
from hostler.supervisor.room import Room
from hostler.supervisor.supply import Supply
from hostler.supervisor.survey import Survey

logger = logging.getLogger(__name__)


class Orders:
    """Orders run in `tasks`, which is there as long as the host runs. On an exclusive host none overlaps another's.

    `others` says who else is alive, `describe` finds out what a file says that came only now; `tell` hears of phases.
    """

    tasks: TaskGroup | None = None

    def __init__(
        self, room: Room, supply: Supply, survey: Survey, load_times: LoadTimes, *,
        others: Callable[[Member], list[Member]], describe: Callable[[Member], Awaitable[None]],
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
        self._newest: dict[str, Order] = {}
        self._under_way: set[Order] = set()
        self._turn = anyio.Lock()

    def to(self, member: Member, evict: Sequence[str]) -> Order:
        """The order to make `member` ready in place of `evict`: the one under way, if it does as much, or a new one.

        Raises `SupervisorError` if the host does not run, or the member has gone from it.
        """
        order = self._newest.get(member.name)
        if order is None or order.outcome.settled or not order.evict.issuperset(evict):
            order = self._begin(member, evict)
        return order

    def of(self, model: str) -> Order | None:
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

    def _begin(self, member: Member, evict: Sequence[str]) -> Order:
        if self.tasks is None or member.retired:
            raise SupervisorError(Failure(kind="cancelled", message="the supervisor is not running"))
        order = Order(
            secrets.token_hex(6), member.name, evict, expected_s=self._load_times.get(member.name), tell=self._tell
        )
        self._newest[member.name] = order
        self._under_way.add(order)
        self.tasks.start_soon(self._carry_out, member, order)
        return order

    async def _carry_out(self, member: Member, order: Order) -> None:
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

    async def _fulfil(self, member: Member, order: Order) -> None:
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
            member.spent = order.spent
            where = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in member.spent.items())
            logger.info("%s is ready after %.3f s (%s)", member.name, sum(member.spent.values()), where or "it was")

    async def _make_ready(self, member: Member, order: Order) -> EngineAddress:
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

    async def _clear_the_way(self, member: Member, order: Order) -> None:
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


def _undrained(victims: Sequence[Member], order: Order) -> list[Member]:
    return [each for each in victims if each.name not in order.evict and each.process.address is not None]
