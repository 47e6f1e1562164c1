"""All engines of one host: carries out orders, keeps the host's rule of how many models may live, tells what happens."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import SourceError
from hostler.supervisor.command import Command, build
from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    HostStatus,
    ModelChanged,
    ModelStatus,
    ProfileInfo,
    Snapshot,
    StaleEpoch,
    SupervisorError,
    SupervisorEvent,
    UnknownProfile,
)
from hostler.supervisor.loadtimes import LoadTimes
from hostler.supervisor.order import Order
from hostler.supervisor.output import Log
from hostler.supervisor.pagecache import read_ahead
from hostler.supervisor.ports import parse_range
from hostler.supervisor.process import Build, Hooks, Limits, ManagedProcess
from hostler.supervisor.settings import SupervisorSettings
from hostler.supervisor.subscription import Subscriptions


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a profile's file without running it."""

    facts: ModelFacts | None = None
    size: int = 0
    digest: str = ""
    modified_at: float = 0.0
    memory_bytes: int = 0


class Keeper:
    """What outlives an engine: the first two are called while it answers and nobody else uses it. Neither may fail."""

    async def restore(self, profile: Profile, address: EngineAddress, file: Path) -> None:
        """The engine is ready; nobody has been told yet."""

    async def save(self, profile: Profile, address: EngineAddress, file: Path) -> None:
        """The engine will be stopped next."""

    async def answered(self, profile: Profile, *, cached: int, prompt: int) -> None:
        """The first answer since then: `cached` of its `prompt` tokens need not be read."""


Prepare = Callable[[Profile], Awaitable[Path]]
"""Turns a profile's `model` into a file on disk; quick when it is there. Raises `SourceError` or `SupervisorError`."""

Describe = Callable[[Profile], Description]
"""Reads what can be known of a profile's file; runs in a thread, and must not fail for a file that is not there."""

MakeRoom = Callable[[ProfileInfo, Sequence[ModelStatus]], Collection[str]]
"""Which of the running models have to go for one more. Raises `SupervisorError` (`does_not_fit`)."""


async def local_path(profile: Profile) -> Path:
    """The simplest `Prepare`: the profile names a file."""
    return _as_path(profile)


def look_at_file(profile: Profile) -> Description:
    """The simplest `Describe`: size and time of the file, and a digest that tells profiles apart."""
    digest = hashlib.sha256(f"{profile.name}\n{profile.model}\n{profile.context}".encode()).hexdigest()
    try:
        status = _as_path(profile).stat()
    except (OSError, ValueError):
        return Description(digest=digest, memory_bytes=profile.memory or 0)
    return Description(
        digest=digest, size=status.st_size, modified_at=status.st_mtime, memory_bytes=profile.memory or 0
    )


class Fleet:
    """Keeps the promises of `contract.Supervisor` on this very machine.

    `run` must be running: everything happens in its task group. On an exclusive host one model lives at a time, pinned
    ones beside it; two models' switches never overlap. Else `make_room` decides who has to go.
    """

    def __init__(
        self, profiles: Sequence[Profile], settings: SupervisorSettings, *, host: str = "127.0.0.1",
        prepare: Prepare = local_path, describe: Describe = look_at_file, make_room: MakeRoom | None = None,
        keeper: Keeper | None = None, load_times: Path | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._host = settings.engine_host or host
        self._ports = parse_range(settings.engine_ports)
        self._prepare = prepare
        self._describe = describe
        self._make_room = make_room
        self._keeper = keeper or Keeper()
        self._load_times = LoadTimes(load_times)
        self._exclusive = settings.exclusive if settings.exclusive is not None else settings.memory_budget is None
        self._epoch = 0
        self._orders: dict[str, Order] = {}
        self._turn = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._started = anyio.Event()
        self._listeners = Subscriptions(lambda: Snapshot(host=self.status_now()))
        self._members = {profile.name: self._enlist(profile) for profile in profiles}

    # The contract.

    async def status(self) -> HostStatus:
        """Everything, now."""
        return self.status_now()

    async def switch(self, model: str, *, evict: Sequence[str] = (), epoch: int | None = None) -> EngineAddress:
        """See `contract.Supervisor`."""
        self._see(epoch)
        member = self._member(model)
        address = member.process.address
        if address is not None and not self._in_the_way(member, evict):
            return address
        order = self._orders.get(model)
        if order is None or order.outcome.settled or not order.evict.issuperset(evict):
            order = self._begin(member, evict)
        return await order.outcome.get()

    async def unload(self, model: str, *, epoch: int | None = None) -> None:
        """See `contract.Supervisor`. Earlier failures are forgotten with it."""
        self._see(epoch)
        member = self._member(model)
        order = self._orders.pop(model, None)
        if order is not None:
            order.cancel(Failure(kind="cancelled", message=f'model "{model}" was unloaded'))
        await member.process.stop()
        member.process.forgive()

    async def locate(self, model: str) -> EngineAddress | None:
        """Where `model` listens, if it is ready now."""
        return self._member(model).process.address

    async def answered(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        """See `contract.Supervisor`."""
        member = self._member(model)
        if member.process.generation == generation:
            await self._keeper.answered(member.profile, cached=cached, prompt=prompt)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[SupervisorEvent]]:
        """See `contract.Supervisor`."""
        with self._listeners.open() as events:
            yield events

    # More than the contract.

    async def run(self) -> None:
        """Carry out orders until cancelled; then end all engines, side by side, within their grace."""
        await anyio.to_thread.run_sync(self._load_times.read)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                for member in self._members.values():
                    tasks.start_soon(member.run)
                tasks.start_soon(self._describe_all)
                self._started.set()
                await anyio.sleep_forever()
        finally:
            self._tasks = None

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
        """Take over new profiles. Engines of unchanged ones run on; others are stopped when this returns.

        An engine is touched only if its command would be another one: see `outdated`, to let its answers finish first.
        """
        wanted = {profile.name: profile for profile in profiles}
        leaving = [self._members[name] for name in self.outdated(profiles)]
        for name, profile in wanted.items():
            member = self._members.get(name)
            if member is None:
                self._members[name] = self._enlist(profile)
                if self._tasks is not None:
                    self._tasks.start_soon(self._members[name].run)
            else:
                member.become(profile, self._limits(profile))
        for name in [name for name in self._members if name not in wanted]:
            self._members[name].retired = True
        async with anyio.create_task_group() as stops:
            for member in leaving:
                stops.start_soon(self._stop_member, member)
        for name in [name for name, member in self._members.items() if member.retired]:
            self._members.pop(name).leave()
        self._members = {name: self._members[name] for name in wanted}
        await self._describe_all()

    def outdated(self, profiles: Sequence[Profile]) -> tuple[str, ...]:
        """The models whose engine `replace_profiles` would stop: gone, or run by another command from now on."""
        wanted = {profile.name: profile for profile in profiles}
        return tuple(
            name
            for name, member in self._members.items()
            if name not in wanted or _engine_of(wanted[name]) != _engine_of(member.profile)
        )

    def status_now(self) -> HostStatus:
        """Everything, now; without waiting."""
        members = [member for member in self._members.values() if not member.retired]
        return HostStatus(
            profiles=tuple(self._info(member) for member in members),
            models=tuple(self._status(member) for member in members),
            exclusive=self._exclusive,
            budget_bytes=self._settings.memory_budget,
            epoch=self._epoch,
        )

    # How an order is carried out.

    def _begin(self, member: _Member, evict: Sequence[str]) -> Order:
        if self._tasks is None or member.retired:
            raise SupervisorError(Failure(kind="cancelled", message="the supervisor is not running"))
        order = Order(
            secrets.token_hex(6), member.name, evict, expected_s=self._load_times.get(member.name),
            tell=self._listeners.publish,
        )  # fmt: skip
        self._orders[member.name] = order
        self._tasks.start_soon(self._carry_out, member, order)
        return order

    async def _carry_out(self, member: _Member, order: Order) -> None:
        try:
            with order.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(order.tick)
                    await self._fulfil(member, order)
                    tasks.cancel_scope.cancel()
        finally:
            if self._orders.get(member.name) is order:
                del self._orders[member.name]
            order.outcome.settle(Failure(kind="cancelled", message="the supervisor is stopping"))
        if order.load_s > 0:
            self._load_times.learn(member.name, order.load_s)
            await anyio.to_thread.run_sync(self._load_times.write)

    async def _fulfil(self, member: _Member, order: Order) -> None:
        try:
            # A file that cannot be had must not cost the model that runs now.
            await self._file_of(member)
            async with self._turn:
                await self._clear_the_way(member, order)
                outcome = member.process.order()
                if self._exclusive:
                    address = await outcome.get()
            if not self._exclusive:
                address = await outcome.get()
        except SupervisorError as error:
            order.fail(error.failure)
        else:
            order.done(address)

    async def _clear_the_way(self, member: _Member, order: Order) -> None:
        """Stop, side by side, all that may not live beside `member`."""
        victims = self._victims(member, order)
        order.victims = tuple(victim.name for victim in victims)
        if not victims:
            return
        assert self._tasks is not None
        if member.file is not None and not member.process.standing:
            self._tasks.start_soon(self._read_ahead, member.file)
        order.enter("saving" if any(victim.process.address for victim in victims) else "stopping")
        async with anyio.create_task_group() as stops:
            for victim in victims:
                stops.start_soon(victim.process.stop)

    def _victims(self, member: _Member, order: Order) -> list[_Member]:
        others = [other for other in self._members.values() if other is not member and other.process.alive]
        if self._exclusive:
            return [other for other in others if other.name in order.evict or not other.profile.pinned]
        names = set(order.evict)
        # What is on its way out holds its memory until it is gone.
        names.update(other.name for other in others if not other.process.standing)
        if self._make_room is not None and not member.process.standing:
            standing = [self._status(other) for other in others if other.name not in names]
            names.update(self._make_room(self._info(member), standing))
        return [other for other in others if other.name in names]

    def _in_the_way(self, member: _Member, evict: Sequence[str]) -> bool:
        """Whether somebody has to be stopped although `member` is ready."""
        return any(
            other is not member
            and other.process.standing
            and (other.name in evict or (self._exclusive and not other.profile.pinned and not member.profile.pinned))
            for other in self._members.values()
        )

    async def _stop_member(self, member: _Member) -> None:
        order = self._orders.pop(member.name, None)
        if order is not None:
            order.cancel(Failure(kind="cancelled", message=f'the profile of model "{member.name}" was changed'))
        await member.process.stop()
        member.process.forgive()

    async def _read_ahead(self, file: Path) -> None:
        given_up = threading.Event()
        try:
            await anyio.to_thread.run_sync(read_ahead, file, given_up, abandon_on_cancel=True)
        finally:
            given_up.set()

    async def _file_of(self, member: _Member) -> Path:
        try:
            member.file = await self._prepare(member.profile)
        except SourceError as error:
            raise SupervisorError(Failure(kind="source_unavailable", message=str(error))) from error
        return member.file

    # What members' processes ask for.

    async def plan(self, member: _Member) -> Build:
        """How to start a member's engine, given a port and a key; its file is there then."""
        file = member.file if member.file is not None and member.file.exists() else await self._file_of(member)
        profile = member.profile

        def command(port: int, key: str) -> Command:
            return build(
                profile, self._settings, file=file, host=self._host, port=port, key=key, inherited=dict(os.environ)
            )

        return command

    async def restore(self, member: _Member, address: EngineAddress) -> None:
        """Give an engine back what its predecessor had."""
        if member.file is not None:
            await self._keeper.restore(member.profile, address, member.file)

    async def save(self, member: _Member, address: EngineAddress) -> None:
        """Keep what an engine has before it goes."""
        if member.file is not None:
            await self._keeper.save(member.profile, address, member.file)

    # Values about members.

    def _see(self, epoch: int | None) -> None:
        if epoch is None:
            return
        if epoch < self._epoch:
            raise StaleEpoch(f"epoch {epoch} is over, {self._epoch} has been seen")
        self._epoch = epoch

    def _member(self, model: str) -> _Member:
        member = self._members.get(model)
        if member is None or member.retired:
            raise UnknownProfile(f'no profile "{model}" on this host; there are: {", ".join(sorted(self._members))}')
        return member

    def _limits(self, profile: Profile) -> Limits:
        settings = self._settings
        return Limits(
            start_timeout_s=_first(profile.start_timeout_s, settings.start_timeout_s),
            stop_grace_s=_first(profile.stop_grace_s, settings.stop_grace_s),
            max_failures=settings.max_failures, backoff_s=settings.backoff_s, max_backoff_s=settings.max_backoff_s,
            stable_s=settings.stable_s, watchdog_s=settings.watchdog_s, keep=profile.pinned,
        )  # fmt: skip

    def _enlist(self, profile: Profile) -> _Member:
        member = _Member(profile, Log(self._settings.log_lines))
        member.process = ManagedProcess(
            profile.name, _MemberHooks(self, member), self._limits(profile), member.log, host=self._host,
            ports=self._ports, changed=self._changed,
        )  # fmt: skip
        return member

    def _changed(self, process: ManagedProcess) -> None:
        member = self._members.get(process.model)
        if member is None or member.process is not process:
            return
        for order in list(self._orders.values()):
            order.hear(process)
        self._listeners.publish(ModelChanged(status=self._status(member)))

    async def _describe_all(self) -> None:
        for member in list(self._members.values()):
            member.description = await anyio.to_thread.run_sync(self._describe, member.profile)
        self._listeners.publish(Snapshot(host=self.status_now()))

    def _status(self, member: _Member) -> ModelStatus:
        process = member.process
        order = self._orders.get(member.name)
        starting = process.state == "starting"
        return ModelStatus(
            model=member.name, state=process.state, since=process.since, generation=process.generation,
            pid=process.pid, percent=order.percent if order is not None and starting else None,
            eta_s=order.eta_s if order is not None and starting else None,
            memory_bytes=_resident(process.pid), failure=process.failure,
        )  # fmt: skip

    def _info(self, member: _Member) -> ProfileInfo:
        profile, description = member.profile, member.description
        return ProfileInfo(
            name=profile.name, aliases=profile.aliases, description=profile.description,
            context=profile.context, parallel=profile.parallel, size=description.size, digest=description.digest,
            modified_at=description.modified_at, facts=description.facts, ttl_s=profile.ttl_s, pinned=profile.pinned,
            listed=profile.listed, default=profile.default, memory_bytes=description.memory_bytes,
            load_s=self._load_times.get(profile.name), chain=profile.chain, local_only=profile.local_only,
        )  # fmt: skip


class _Member:
    """A profile with its process, its output and what is known of its file."""

    process: ManagedProcess

    def __init__(self, profile: Profile, log: Log) -> None:
        self.profile = profile
        self.log = log
        self.file: Path | None = None
        self.description = Description()
        self.retired = False
        self._scope: anyio.CancelScope | None = None

    @property
    def name(self) -> str:
        return self.profile.name

    async def run(self) -> None:
        """Its process' task, which ends with the member."""
        with anyio.CancelScope() as self._scope:
            await self.process.run()

    def leave(self) -> None:
        """End the task, now or when it starts."""
        self.retired = True
        if self._scope is not None:
            self._scope.cancel()

    def become(self, profile: Profile, limits: Limits) -> None:
        """Take over a new profile of the same name."""
        if profile.model != self.profile.model:
            self.file = None
        self.profile = profile
        self.process.limits = limits


class _MemberHooks(Hooks):
    """What a fleet does at the fixed points of a member's life."""

    def __init__(self, fleet: Fleet, member: _Member) -> None:
        self._fleet = fleet
        self._member = member

    async def prepare(self) -> Build:
        return await self._fleet.plan(self._member)

    async def ready(self, address: EngineAddress) -> None:
        await self._fleet.restore(self._member, address)

    async def stopping(self, address: EngineAddress) -> None:
        await self._fleet.save(self._member, address)


def _engine_of(profile: Profile) -> Profile:
    """The part of a profile that makes a command: two profiles that are equal in it can share a running engine."""
    return msgspec.structs.replace(
        profile, aliases=(), description="", ttl_s=None, start_timeout_s=None, stop_grace_s=None, memory=None,
        pinned=False, listed=True, default=False,
    )  # fmt: skip


def _as_path(profile: Profile) -> Path:
    return Path(profile.model).expanduser()


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _resident(pid: int | None) -> int:
    """Bytes of main memory that a process holds; 0 if the system does not say."""
    if pid is None:
        return 0
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return 0
