"""What a host's engines are started with and leave behind: files, command lines, conversations. Starts and stops nobody."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from hostler.profiles.fetch import cached, fetch
from hostler.profiles.gguf import FactsCache, GGUFError, digest
from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import FetchProgress, SourceError
from hostler.supervisor.command import EngineCommand, build_command
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError
from hostler.supervisor.model import FileDescription, ManagedModel
from hostler.supervisor.process import CommandBuilder, Hooks
from hostler.supervisor.slot_cache import Keeper
from hostler.supervisor.usage import UsageMonitor

logger = logging.getLogger(__name__)


Prepare = Callable[[Profile, Callable[[FetchProgress], None]], Awaitable[Path]]
"""Turns a profile's `model` into a file on disk; quick when it is there, else it tells how far it is.

Raises `SourceError` or `SupervisorError`.
"""

Describe = Callable[[Profile], FileDescription]
"""Reads what can be known of a profile's file; runs in a thread, and must not fail for a file that is not there."""


async def local_path(profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
    """The simplest `Prepare`: the profile names a file."""
    return _path(profile)


def describe_file(profile: Profile) -> FileDescription:
    """The simplest `Describe`: size and time of the file, and a digest that tells profiles apart."""
    digest = hashlib.sha256(f"{profile.name}\n{profile.model}\n{profile.context}".encode()).hexdigest()
    try:
        status = _path(profile).stat()
    except (OSError, ValueError):
        return FileDescription(digest=digest)
    return FileDescription(digest=digest, size=status.st_size, modified_at=status.st_mtime)


class ModelFiles:
    """What the fleet asks about files. `report` hears of downloads, from a thread."""

    def __init__(self, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        self._report = report
        self._facts = FactsCache()

    async def prepare(self, profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
        """The profile's file on disk; `report` hears how far its download is. Raises `SourceError`."""
        path = cached(profile)
        if path is not None:
            return path
        loop = asyncio.get_running_loop()

        def both(progress: FetchProgress) -> None:  # in a thread, which may outlive the loop
            self._report(progress)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(report, progress)

        return await fetch(profile, report=both)

    def describe(self, profile: Profile) -> FileDescription:
        """What can be said of the profile without running it; less, while its file is not here. Blocks."""
        path = cached(profile)
        facts = None if path is None else self._read(profile, path)
        try:
            modified_at = path.stat().st_mtime if path is not None else 0.0
        except OSError:
            modified_at = 0.0
        return FileDescription(
            facts=facts,
            size=facts.bytes if facts else 0,
            digest=digest(profile, path),
            modified_at=modified_at,
        )

    def facts(self, path: Path) -> ModelFacts | None:
        """What the file says of itself, remembered. Raises `GGUFError`; blocks."""
        return self._facts.read(path)

    def _read(self, profile: Profile, path: Path) -> ModelFacts | None:
        try:
            return self._facts.read(path)
        except GGUFError as error:
            logger.warning("profile %s: %s", profile.name, error)
            return None


def _path(profile: Profile) -> Path:
    return Path(profile.model).expanduser()


ReportProgress = Callable[[FetchProgress], None]


class SharedDownloads:
    """Has files come through `prepare`. One is the same as another if model and checksum are."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._coming: dict[tuple[str, str | None], _Fetch] = {}

    async def file(self, tasks: TaskGroup, profile: Profile, report: ReportProgress = lambda _: None) -> Path:
        """The profile's file on disk; `report` hears how far it is. Who is cancelled does not stop it for others.

        It comes in `tasks`, which must outlive whoever waits. Raises what `prepare` does.
        """
        key = (profile.model, profile.sha256)
        fetch = self._coming.get(key)
        if fetch is None or fetch.scope.cancel_called:
            fetch = self._coming[key] = _Fetch()
            tasks.start_soon(self._fetch, key, profile, fetch)
        with fetch.joined(report):
            await fetch.over.wait()
        if fetch.error is not None:
            raise fetch.error
        if fetch.path is None:
            raise SourceError("the supervisor is stopping")
        return fetch.path

    async def _fetch(self, key: tuple[str, str | None], profile: Profile, fetch: _Fetch) -> None:
        try:
            with fetch.scope:
                fetch.path = await self._prepare(profile, fetch.tell)
        except Exception as error:
            fetch.error = error
        finally:
            # Who comes from now on begins anew: this one may have been given up.
            if self._coming.get(key) is fetch:
                del self._coming[key]
            fetch.over.set()


class _Fetch:
    """One file on its way, and who listens."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()
        self.path: Path | None = None
        self.error: Exception | None = None
        self._listeners: list[ReportProgress] = []
        self._last: FetchProgress | None = None

    def tell(self, progress: FetchProgress) -> None:
        self._last = progress
        for listener in list(self._listeners):
            listener(progress)

    def joined(self, report: ReportProgress) -> ExitStack:
        """Listens while the context lasts; the last one to leave ends what is not over."""
        self._listeners.append(report)
        if self._last is not None:
            report(self._last)
        stack = ExitStack()
        stack.callback(self._leave, report)
        return stack

    def _leave(self, report: ReportProgress) -> None:
        self._listeners.remove(report)
        if not self._listeners and not self.over.is_set():
            self.scope.cancel()


#: Asked for in pieces, so that it can be given up in between.
_PIECE: Final = 64 * 1024 * 1024


def read_ahead(file: Path, given_up: threading.Event) -> None:
    """Start reading `file` into the page cache. May take as long as the disk does; a file that is not there is nothing."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        for offset in range(0, os.fstat(descriptor).st_size, _PIECE):
            if given_up.is_set():
                return
            os.posix_fadvise(descriptor, offset, _PIECE, os.POSIX_FADV_WILLNEED)
    except OSError:
        return
    finally:
        os.close(descriptor)


class Supply:
    """Files come in `tasks`, which is there as long as the host runs."""

    tasks: TaskGroup | None = None

    def __init__(
        self, settings: SupervisorSettings, *, host: str, prepare: Prepare, describe: Describe, keeper: Keeper,
        survey: UsageMonitor,
    ) -> None:  # fmt: skip
        self.host = host
        self._settings = settings
        self._fetches = SharedDownloads(prepare)
        self._describe = describe
        self._keeper = keeper
        self._survey = survey

    async def file(self, member: ManagedModel, report: Callable[[FetchProgress], None] = lambda _: None) -> Path:
        """The member's file on disk; `report` hears how far it is. Raises `SupervisorError`."""
        try:
            if self.tasks is None:
                raise SourceError("the supervisor is not running")
            member.file = await self._fetches.file(self.tasks, member.profile, report)
        except (SourceError, OSError) as error:
            raise SupervisorError(Failure(kind="source_unavailable", message=str(error))) from error
        return member.file

    async def describe(self, member: ManagedModel) -> None:
        """Find out what can be said of its file without running it, and what was seen of it before."""
        try:
            member.description = await anyio.to_thread.run_sync(self._describe, member.profile)
        except Exception:
            # Less is known of one model then; the others are served as before.
            logger.exception("what is known of the file of %s could not be read", member.name)
            member.description = FileDescription()
        self._survey.recall(member)

    def read_ahead(self, member: ManagedModel) -> None:
        """Have its file in memory when its engine wants it; nobody waits for that."""
        if self.tasks is not None and member.file is not None:
            self.tasks.start_soon(_read_ahead, member.file)

    def hooks(self, member: ManagedModel) -> Hooks:
        """What is done at the fixed points of its process' life."""
        return _Hooks(self, member)

    async def plan(self, member: ManagedModel) -> CommandBuilder:
        """How to start its engine, given a port and a key; its file is there then."""
        file = member.file if member.file is not None and member.file.exists() else await self.file(member)
        if member.profile.embeddings and member.description.facts is None:
            # Its file may have come only now, and says how.
            await self.describe(member)
        profile, facts = member.profile, member.description.facts

        def command(port: int, key: str) -> EngineCommand:
            return build_command(
                profile, self._settings, file=file, host=self.host, port=port, key=key, inherited=dict(os.environ),
                facts=facts,
            )  # fmt: skip

        return command

    async def restore(self, member: ManagedModel, address: EngineAddress) -> None:
        """Give its engine back what the one before had."""
        if member.file is not None:
            await self._keeper.restore(member.profile, address, member.file)

    async def save(self, member: ManagedModel, address: EngineAddress) -> None:
        """Keep what its engine has before it goes."""
        if self.tasks is not None:
            self.tasks.start_soon(self._survey.measure, member)
        if member.file is not None:
            await self._keeper.save(member.profile, address, member.file)

    async def answered(self, member: ManagedModel, *, cached: int, prompt: int) -> None:
        """Its engine has answered for the first time: see `contract.Supervisor`."""
        await self._keeper.answered(member.profile, cached=cached, prompt=prompt)
        # Engines take their memory while they work: from now on a look says how much it really is.
        await self._survey.measure(member, settled=True)


class _Hooks(Hooks):
    def __init__(self, supply: Supply, member: ManagedModel) -> None:
        self._supply = supply
        self._member = member

    async def prepare(self) -> CommandBuilder:
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
