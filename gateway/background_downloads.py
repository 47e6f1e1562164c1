"""Downloads of models in the background: they go on when the client has left, and are known by their ids."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Literal

import anyio
from anyio.abc import TaskGroup

from hostler.adapters.canonical import Download
from hostler.adapters.errors import GatewayError, TooManyRequests
from hostler.adapters.model_names import normalized
from hostler.profiles.sources import FetchProgress, ReportProgress

logger = logging.getLogger(__name__)

#: Downloads that run at the same time.
_MAX_RUNNING = 16
#: Ended downloads that are remembered.
_MAX_ENDED = 200
#: How long the first answer waits for the size, in seconds.
_FIRST_S = 10.0

FetchModel = Callable[[str, ReportProgress], Awaitable[None]]
"""Fetches a model's file. Raises `GatewayError`."""


class BackgroundDownloads:
    """Downloads by id, in memory. `run` has to run while there are any; they end with it.

    `wall` is the time in seconds since the epoch, `clock` a clock that never goes back.
    """

    def __init__(self, fetch: FetchModel, *, wall: Callable[[], float], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._wall = wall
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Carry out downloads until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    async def start(self, model: str, first_s: float = _FIRST_S) -> Download:
        """Download a model, unless it is being downloaded already, and return as soon as its size is known, or it ended.

        Raises `TooManyRequests` if too many are running.
        """
        name = normalized(model)
        running = [job for job in self._jobs.values() if job.status == "downloading"]
        job = next((each for each in running if each.name == name), None)
        if job is None:
            if len(running) >= _MAX_RUNNING or self._tasks is None:
                raise TooManyRequests(f"{len(running)} models are being downloaded; try again when one has ended")
            job = _Job(name, self._wall(), self._clock())
            self._jobs[job.id] = job
            self._forget()
            self._tasks.start_soon(self._download, job, model)
        with anyio.move_on_after(first_s):
            await job.known.wait()
        return self._view(job)

    def find(self, job_id: str) -> Download | None:
        """The download with this id, if it is one of those here."""
        job = self._jobs.get(job_id)
        return None if job is None else self._view(job)

    def all(self) -> tuple[Download, ...]:
        """All downloads that are remembered, the oldest first."""
        return tuple(map(self._view, self._jobs.values()))

    async def _download(self, job: _Job, model: str) -> None:
        try:
            await self._fetch(model, job.on_progress)
        except GatewayError as error:
            job.fail(str(error), self._wall())
        except Exception:
            logger.exception("downloading %s failed", model)
            job.fail("internal error; see the gateway's log", self._wall())
        else:
            job.complete(self._wall())

    def _view(self, job: _Job) -> Download:
        completed, total = job.bytes
        seconds = self._clock() - job.started
        speed = completed / seconds if seconds > 0 else 0.0
        left = (total - completed) / speed if total and speed > 0 else None
        return Download(
            id=job.id,
            status=job.status,
            completed=completed,
            total=total,
            bytes_per_second=speed,
            started_at=job.started_at,
            estimated_end=None if left is None else self._wall() + left,
            ended_at=job.ended_at,
            error=job.error,
        )

    def _forget(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.status != "downloading"]
        for each in ended[: max(0, len(ended) - _MAX_ENDED)]:
            del self._jobs[each]


class _Job:
    """One download. `known` is set once its size is known, or it has ended."""

    def __init__(self, name: str, started_at: float, started: float) -> None:
        self.id = f"job_{secrets.token_hex(5)}"
        self.name = name
        self.started_at = started_at
        self.started = started
        self.status: Literal["downloading", "completed", "failed"] = "downloading"
        self.ended_at: float | None = None
        self.error = ""
        self.known = anyio.Event()
        self._files: dict[str, FetchProgress] = {}

    @property
    def bytes(self) -> tuple[int, int]:
        """How many bytes are there, of how many as far as they are known."""
        files = self._files.values()
        completed = sum(each.completed for each in files)
        return completed, sum(max(each.total or 0, each.completed) for each in files)

    def on_progress(self, progress: FetchProgress) -> None:
        """Called by the fetch. A file is verified and unpacked after it was fetched."""
        if progress.phase not in ("downloading", "done"):
            return
        self._files[progress.file] = progress
        if progress.total:
            self.known.set()

    def complete(self, at: float) -> None:
        self.status, self.ended_at = "completed", at
        self.known.set()

    def fail(self, reason: str, at: float) -> None:
        self.status, self.error, self.ended_at = "failed", reason, at
        self.known.set()
