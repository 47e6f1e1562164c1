"""Downloads in the background: their ids, their sizes, how they end, and how many there may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from hostler.adapters.errors import ModelUnavailable, TooManyRequests
from hostler.gateway.background_downloads import BackgroundDownloads
from hostler.profiles.sources import FetchProgress, ReportProgress

pytestmark = pytest.mark.anyio


class ScriptedFetch:
    """Fetches that report what a test says, and end when it says so."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.report: ReportProgress = lambda _: None
        self.error: Exception | None = None
        self.go_on = anyio.Event()

    async def __call__(self, model: str, report: ReportProgress) -> None:
        self.started.append(model)
        self.report = report
        report(FetchProgress(file="a.gguf", phase="downloading", completed=25, total=100))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        report(FetchProgress(file="a.gguf", phase="done", completed=100, total=100))


@asynccontextmanager
async def running(fetch: ScriptedFetch, clock: Callable[[], float] = lambda: 0.0) -> AsyncIterator[BackgroundDownloads]:
    downloads = BackgroundDownloads(fetch, wall=lambda: 1000.0 + clock(), clock=clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(downloads.run)
        await anyio.wait_all_tasks_blocked()
        yield downloads
        tasks.cancel_scope.cancel()


async def test_a_download_is_known_by_its_id_until_it_has_ended() -> None:
    fetch, now = ScriptedFetch(), [0.0]
    async with running(fetch, lambda: now[0]) as downloads:
        first = await downloads.start("qwen")
        assert first.id is not None and first.id.startswith("job_")
        assert (first.status, first.completed, first.total, first.started_at) == ("downloading", 25, 100, 1000.0)
        now[0] = 5.0
        fetch.report(FetchProgress(file="a.gguf", phase="verifying", completed=1, total=100))
        later = downloads.find(first.id)
        assert later is not None
        assert (later.completed, later.bytes_per_second, later.estimated_end) == (25, 5.0, 1020.0)
        fetch.go_on.set()
        await anyio.wait_all_tasks_blocked()
        ended = downloads.find(first.id)
        assert ended is not None
        assert (ended.status, ended.completed, ended.ended_at) == ("completed", 100, 1005.0)
        assert (downloads.all(), downloads.find("job_0")) == ((ended,), None)


async def test_the_sizes_of_all_files_are_added() -> None:
    fetch = ScriptedFetch()
    async with running(fetch) as downloads:
        first = await downloads.start("qwen")
        fetch.report(FetchProgress(file="b.gguf", phase="downloading", completed=10, total=50))
        found = downloads.find(first.id or "")
        assert found is not None and (found.completed, found.total) == (35, 150)


async def test_a_model_that_is_being_downloaded_is_not_downloaded_twice() -> None:
    fetch = ScriptedFetch()
    async with running(fetch) as downloads:
        first, second = await downloads.start("Qwen"), await downloads.start("qwen:latest")
        assert first.id == second.id
        fetch.go_on.set()
        await anyio.wait_all_tasks_blocked()
        assert (await downloads.start("qwen")).id != first.id
    assert fetch.started == ["Qwen", "qwen"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelUnavailable("qwen could not be fetched on box"), "could not be fetched on box"),
        (OSError(28, "x"), "internal"),
    ],
)
async def test_a_failure_is_reported_and_the_others_go_on(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    fetch = ScriptedFetch()
    async with running(fetch) as downloads:
        fetch.error = error
        fetch.go_on.set()
        failed = await downloads.start("qwen")
        await anyio.wait_all_tasks_blocked()
        ended = downloads.find(failed.id or "")
        assert ended is not None and ended.status == "failed" and reason in ended.error
        fetch.error = None
        other = await downloads.start("phi")
        await anyio.wait_all_tasks_blocked()
        assert [each.status for each in downloads.all()] == ["failed", "completed"]
        assert other.id != failed.id
    assert ("downloading qwen failed" in caplog.text) == isinstance(error, OSError)


async def test_so_many_run_at_the_same_time_and_so_many_are_remembered() -> None:
    fetch = ScriptedFetch()
    async with running(fetch) as downloads:
        for number in range(16):
            await downloads.start(f"model{number}")
        with pytest.raises(TooManyRequests, match="16 models"):
            await downloads.start("one-more")
        fetch.go_on.set()
        await anyio.wait_all_tasks_blocked()
        for number in range(300):
            await downloads.start(f"other{number}")
            await anyio.wait_all_tasks_blocked()
        assert len(downloads.all()) <= 201


async def test_no_download_starts_after_the_end() -> None:
    fetch = ScriptedFetch()
    async with running(fetch) as downloads:
        pass
    with pytest.raises(TooManyRequests):
        await downloads.start("qwen")


async def test_the_first_answer_does_not_wait_for_a_size_that_never_comes() -> None:
    async def silent(model: str, report: ReportProgress) -> None:
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        downloads = BackgroundDownloads(silent, wall=lambda: 0.0, clock=lambda: 0.0)
        tasks.start_soon(downloads.run)
        await anyio.wait_all_tasks_blocked()
        first = await downloads.start("qwen", first_s=0.01)
        assert (first.status, first.total, first.estimated_end) == ("downloading", 0, None)
        tasks.cancel_scope.cancel()
