"""What a host's engines are started with and leave behind: files, command lines, conversations. Starts and stops nobody."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from hostler.profiles.sources import FetchProgress, SourceError
from hostler.supervisor.command import Command, build
from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError
from hostler.supervisor.fetches import Fetches
from hostler.supervisor.files import Describe, Prepare
from hostler.supervisor.keeper import Keeper
from hostler.supervisor.life import Build, Hooks
from hostler.supervisor.member import Description, Member
from hostler.supervisor.pagecache import read_ahead
from hostler.supervisor.settings import SupervisorSettings
from hostler.supervisor.survey import Survey

logger = logging.getLogger(__name__)


class Supply:
    """Files come in `tasks`, which is there as long as the host runs."""

    tasks: TaskGroup | None = None

    def __init__(
        self, settings: SupervisorSettings, *, host: str, prepare: Prepare, describe: Describe, keeper: Keeper,
        survey: Survey,
    ) -> None:  # fmt: skip
        self.host = host
        self._settings = settings
        self._fetches = Fetches(prepare)
        self._describe = describe
        self._keeper = keeper
        self._survey = survey

    async def file(self, member: Member, report: Callable[[FetchProgress], None] = lambda _: None) -> Path:
        """The member's file on disk; `report` hears how far it is. Raises `SupervisorError`."""
        try:
            if self.tasks is None:
                raise SourceError("the supervisor is not running")
            member.file = await self._fetches.file(self.tasks, member.profile, report)
        except (SourceError, OSError) as error:
            raise SupervisorError(Failure(kind="source_unavailable", message=str(error))) from error
        return member.file

    async def describe(self, member: Member) -> None:
        """Find out what can be said of its file without running it, and what was seen of it before."""
        try:
            member.description = await anyio.to_thread.run_sync(self._describe, member.profile)
        except Exception:
            # Less is known of one model then; the others are served as before.
            logger.exception("what is known of the file of %s could not be read", member.name)
            member.description = Description()
        self._survey.recall(member)

    def read_ahead(self, member: Member) -> None:
        """Have its file in memory when its engine wants it; nobody waits for that."""
        if self.tasks is not None and member.file is not None:
            self.tasks.start_soon(_read_ahead, member.file)

    def hooks(self, member: Member) -> Hooks:
        """What is done at the fixed points of its process' life."""
        return _Hooks(self, member)

    async def plan(self, member: Member) -> Build:
        """How to start its engine, given a port and a key; its file is there then."""
        file = member.file if member.file is not None and member.file.exists() else await self.file(member)
        if member.profile.embeddings and member.description.facts is None:
            # Its file may have come only now, and says how.
            await self.describe(member)
        profile, facts = member.profile, member.description.facts

        def command(port: int, key: str) -> Command:
            return build(
                profile, self._settings, file=file, host=self.host, port=port, key=key, inherited=dict(os.environ),
                facts=facts,
            )  # fmt: skip

        return command

    async def restore(self, member: Member, address: EngineAddress) -> None:
        """Give its engine back what the one before had."""
        if member.file is not None:
            await self._keeper.restore(member.profile, address, member.file)

    async def save(self, member: Member, address: EngineAddress) -> None:
        """Keep what its engine has before it goes."""
        if self.tasks is not None:
            self.tasks.start_soon(self._survey.measure, member)
        if member.file is not None:
            await self._keeper.save(member.profile, address, member.file)

    async def answered(self, member: Member, *, cached: int, prompt: int) -> None:
        """Its engine has answered for the first time: see `contract.Supervisor`."""
        await self._keeper.answered(member.profile, cached=cached, prompt=prompt)
        # Engines take their memory while they work: from now on a look says how much it really is.
        await self._survey.measure(member, settled=True)


class _Hooks(Hooks):
    def __init__(self, supply: Supply, member: Member) -> None:
        self._supply = supply
        self._member = member

    async def prepare(self) -> Build:
        return await self._supply.plan(self._member)

    async def ready(self, address: EngineAddress) -> None:
        await self._supply.restore(self._member, address)

    async def stopping(self, address: EngineAddress) -> None:
        await self._supply.save(self._member, address)


async def _read_ahead(file: Path) -> None:
    given_up = threading.Event()
    try:
        await anyio.to_thread.run_sync(read_ahead, file, given_up, abandon_on_cancel=True)
    finally:
        given_up.set()
