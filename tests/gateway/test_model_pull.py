"""Pulls in threads: their progress arrives on the event loop, and they end with their client."""

from __future__ import annotations

import threading

import anyio
import pytest
from fakes.downloads import until

from hostler.adapters.canonical import ProgressStep
from hostler.gateway.model_pull import ModelPull, pull_in_thread
from hostler.profiles.downloads import Cancellation
from hostler.profiles.sources import FetchProgress, ReportProgress, SourceError

pytestmark = pytest.mark.anyio


async def test_the_latest_progress_is_reported_and_the_result_returned() -> None:
    steps: list[ProgressStep] = []
    reported = threading.Event()

    async def report(step: ProgressStep) -> None:
        steps.append(step)
        reported.set()

    def work(on_progress: ReportProgress, _: Cancellation) -> str:
        on_progress(FetchProgress(file="m", phase="downloading", completed=3, total=9))
        assert reported.wait(20)
        return "got"

    pull = ModelPull("digest", report)
    assert await pull.run(lambda on_progress: pull_in_thread(work, on_progress)) == "got"
    assert (steps[0].completed, steps[0].total, pull.size) == (3, 9, 9)


async def test_an_error_is_raised_as_it_is() -> None:
    def work(*_: object) -> None:
        raise SourceError("no")

    async def report(_: ProgressStep) -> None: ...

    with pytest.raises(SourceError, match="no"):
        await ModelPull("d", report).run(lambda on_progress: pull_in_thread(work, on_progress))


async def test_cancelling_ends_the_thread() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(_: ReportProgress, cancellation: Cancellation) -> None:
        begun.set()
        cancellation.wait(20)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pull_in_thread, work, lambda _: None)
        await until(begun.is_set)
        tasks.cancel_scope.cancel()
    assert ended.is_set()
