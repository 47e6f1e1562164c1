"""Model files on disk: found, downloaded once for all callers, described by their headers, read ahead."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from hostler.profiles.fetch import cached, fetch
from hostler.profiles.file_reading import home_path
from hostler.profiles.gguf import FactsCache, GGUFError, digest, shard_paths
from hostler.profiles.model_folder import folder_facts, weight_files
from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import FetchProgress, ReportProgress, SourceError, source_of
from hostler.supervisor.contract import Failure, SupervisorError

#: Read-ahead is requested in pieces: Linux reads no more of each than a device's read-ahead, at least 128 KiB, and it can be
#: cancelled in between.
_PIECE: Final = 128 * 1024

logger = logging.getLogger(__name__)


class FileDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a profile's file without running it. `failure`: it is missing, damaged or no GGUF file."""

    facts: ModelFacts | None = None
    size: int = 0
    digest: str = ""
    modified_at: float = 0.0
    failure: Failure | None = None


PrepareFile = Callable[[Profile, ReportProgress], Awaitable[Path]]
"""Returns the path of a profile's file, after downloading it if necessary. Raises `SourceError`, `OSError`."""

DescribeFile = Callable[[Profile], FileDescription]
"""Describes a profile's file. Runs in a thread; a missing file is no error."""


async def local_path(profile: Profile, report: ReportProgress) -> Path:
    """The simplest `PrepareFile`: the profile names a local file."""
    return _path(profile)


def describe_file(profile: Profile) -> FileDescription:
    """The simplest `DescribeFile`: size, time, and a digest that tells profiles apart."""
    digest = hashlib.sha256(f"{profile.name}\n{profile.model}\n{profile.context}".encode()).hexdigest()
    try:
        status = _path(profile).stat()
    except (OSError, ValueError):
        return FileDescription(digest=digest)
    return FileDescription(digest=digest, size=status.st_size, modified_at=status.st_mtime)


class DownloadedFiles:
    """`prepare` and `describe` for files of every kind of source. `report` is called in a download's thread."""

    def __init__(self, *, report: ReportProgress = lambda _: None) -> None:
        self._report = report
        self._facts = FactsCache()

    async def prepare(self, profile: Profile, report: ReportProgress) -> Path:
        """The profile's file on disk, downloaded if necessary. Raises `SourceError`."""
        path = cached(profile)
        if path is not None:
            return path
        loop = asyncio.get_running_loop()

        def report_both(progress: FetchProgress) -> None:  # in a thread, which may outlive the loop
            self._report(progress)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(report, progress)

        return await fetch(profile, report=report_both)

    def describe(self, profile: Profile) -> FileDescription:
        """Describe the profile's file from its header; only by its profile while it is not downloaded. Blocks."""
        path = cached(profile)
        facts, failure = None, None
        try:
            if path is not None and path.is_dir():
                facts = folder_facts(path)
                failure = Failure(kind="not_gguf", message=f"{path} is a folder, not a GGUF file")
            elif path is not None:
                facts = self._facts.read(path)
            elif source_of(profile.model).kind == "path":
                failure = Failure(kind="file_missing", message=f"{profile.model} does not exist")
        except GGUFError as error:
            failure = Failure(kind=error.kind, message=str(error))
        size, modified_at = 0, 0.0
        with contextlib.suppress(OSError):
            if path is not None:
                status = path.stat()
                size, modified_at = status.st_size, status.st_mtime
        return FileDescription(
            facts=facts,
            size=facts.bytes if facts else size,
            digest=digest(profile, path),
            modified_at=modified_at,
            failure=failure,
        )

    def facts(self, path: Path) -> ModelFacts | None:
        """The file's header, cached. Raises `GGUFError`; blocks."""
        return self._facts.read(path)


class ModelFiles:
    """The files of all models of a host. Downloads run in `tasks`, which is set while the host runs.

    Profiles with the same source and checksum share a download; it is cancelled when all callers are cancelled.
    """

    tasks: TaskGroup | None = None

    def __init__(self, prepare: PrepareFile = local_path, describe: DescribeFile = describe_file) -> None:
        self._prepare = prepare
        self._describe = describe
        self._downloads: dict[tuple[str, str | None], _Download] = {}

    @property
    def fetching(self) -> bool:
        """Whether a file is being prepared."""
        return bool(self._downloads)

    async def path(self, profile: Profile, report: ReportProgress = lambda _: None) -> Path:
        """The profile's file on disk. Raises `SupervisorError`. Cancelling one caller does not affect the others."""
        try:
            return await self._shared_download(profile, report)
        except (SourceError, OSError) as error:
            raise SupervisorError(Failure(kind="source_unavailable", message=str(error))) from error

    async def describe(self, profile: Profile) -> FileDescription:
        """Describe the profile's file. A failure is logged and costs only the description."""
        try:
            return await anyio.to_thread.run_sync(self._describe, profile)
        except Exception:
            logger.exception("profile %s: cannot describe the model file", profile.name)
            return FileDescription()

    async def read_ahead(self, path: Path, limit: int) -> None:
        """Load a model's files into the page cache, unless they are larger than `limit`; cancellable."""
        cancelled = threading.Event()
        try:
            await anyio.to_thread.run_sync(read_ahead, path, limit, cancelled, abandon_on_cancel=True)
        finally:
            cancelled.set()

    def begin_read_ahead(self, path: Path, limit: int) -> None:
        """`read_ahead` in the background."""
        if self.tasks is not None:
            self.tasks.start_soon(self.read_ahead, path, limit)

    async def _shared_download(self, profile: Profile, report: ReportProgress) -> Path:
        if self.tasks is None:
            raise SourceError("the supervisor is not running")
        key = (profile.model, profile.sha256)
        download = self._downloads.get(key)
        if download is None or download.scope.cancel_called:
            download = self._downloads[key] = _Download()
            self.tasks.start_soon(self._run, key, profile, download)
        with download.watched(report):
            await download.finished.wait()
        if download.error is not None:
            raise download.error
        if download.path is None:
            raise SourceError("the supervisor is stopping")
        return download.path

    async def _run(self, key: tuple[str, str | None], profile: Profile, download: _Download) -> None:
        try:
            with download.scope:
                download.path = await self._prepare(profile, download.on_progress)
        except Exception as error:
            download.error = error
        finally:
            # Later callers start anew: this one may have been cancelled.
            if self._downloads.get(key) is download:
                del self._downloads[key]
            download.finished.set()


class _Download:
    """One file that is being prepared, and who watches it."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.finished = anyio.Event()
        self.path: Path | None = None
        self.error: Exception | None = None
        self._watchers: list[ReportProgress] = []
        self._last: FetchProgress | None = None

    def on_progress(self, progress: FetchProgress) -> None:
        self._last = progress
        for watcher in list(self._watchers):
            watcher(progress)

    @contextmanager
    def watched(self, report: ReportProgress) -> Iterator[None]:
        """Report progress while the context lasts; the last watcher to leave cancels what is not finished."""
        self._watchers.append(report)
        try:
            if self._last is not None:
                report(self._last)
            yield
        finally:
            self._watchers.remove(report)
            if not self._watchers and not self.finished.is_set():
                self.scope.cancel()


def read_ahead(path: Path, limit: int, cancelled: threading.Event) -> None:
    """Start reading a model's files into the page cache, unless they are larger than `limit` together: they would push
    out of it what is in use. Blocks as long as the disk does; errors are ignored."""
    with contextlib.suppress(OSError, GGUFError):
        files = weight_files(path) if path.is_dir() else shard_paths(path)
        if hasattr(os, "posix_fadvise") and sum(each.stat().st_size for each in files) <= limit:
            for each in files:
                _read_file_ahead(each, cancelled)


def _read_file_ahead(path: Path, cancelled: threading.Event) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for offset in range(0, os.fstat(descriptor).st_size, _PIECE):
            if cancelled.is_set():
                return
            os.posix_fadvise(descriptor, offset, _PIECE, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def _path(profile: Profile) -> Path:
    return home_path(profile.model)
