"""One pull of a model, with its progress for the client; and pulls in threads, which end with the client."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from hostler.adapters.canonical import ProgressStep, ReportStep
from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import CLEAN_UP_S
from hostler.profiles.sources import FetchProgress, ReportProgress

_T = TypeVar("_T")


class ModelPull:
    """A pull that reports its latest progress, however slowly the client reads. `digest` tells models apart."""

    def __init__(self, digest: str, report: ReportStep) -> None:
        self._digest = digest
        self._report = report
        self._updated = anyio.Event()
        self._last: FetchProgress | None = None

    async def run(self, pull: Callable[[ReportProgress], Awaitable[_T]]) -> _T:
        """Do what `pull` does, and report its progress meanwhile. Raises what it raises."""
        failed: Exception | None = None
        result: list[_T] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report_progress)
            try:
                result.append(await pull(self._on_progress))
            except Exception as error:  # raised outside of the group, so that it is not wrapped in one
                failed = error
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return result[0]

    @property
    def size(self) -> int:
        """The size of the last file in bytes, as far as it is known."""
        return (self._last.total or self._last.completed) if self._last is not None else 0

    def _on_progress(self, progress: FetchProgress) -> None:
        self._last = progress
        self._updated.set()

    async def _report_progress(self) -> None:
        while True:
            await self._updated.wait()
            self._updated = anyio.Event()
            progress = self._last
            if progress is None or progress.phase in ("waiting", "done"):
                continue
            # Clients draw a bar for each digest: a wheel, its contents and each part of a file get their own.
            digest = hashlib.sha256(f"{self._digest}/{progress.file}/{progress.phase}".encode()).hexdigest()
            await self._report(
                ProgressStep(step="fetching", digest=digest, completed=progress.completed, total=progress.total)
            )


async def pull_in_thread(work: Callable[[ReportProgress, Cancellation], _T], on_progress: ReportProgress) -> _T:
    """What `work` returns, done in a thread. Cancelling ends it within `CLEAN_UP_S`."""
    cancellation, finished = Cancellation(), threading.Event()

    def report(progress: FetchProgress) -> None:
        if not cancellation.is_cancelled:
            anyio.from_thread.run_sync(on_progress, progress)

    def run() -> _T:
        try:
            return work(report, cancellation)
        finally:
            finished.set()

    try:
        return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        cancellation.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(finished.wait, CLEAN_UP_S)
        raise
