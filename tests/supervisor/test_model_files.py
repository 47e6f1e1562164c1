"""Model files: one download for all who wait for the same file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from fakes.page_cache import cached_share, uncached_file, until_cached

from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, SourceError
from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.model_files import DownloadedFiles, ModelFiles, read_ahead

pytestmark = pytest.mark.anyio
FILE = Path("/somewhere/m.gguf")
PROFILE = Profile(name="m", model="hf:a/b/m.gguf")
SAME = Profile(name="other", model="hf:a/b/m.gguf")


class Source:
    """A source that delivers when `deliver` is set."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = anyio.Event()
        self.deliver = anyio.Event()
        self.asked = anyio.Event()
        self.error: Exception | None = None

    async def prepare(self, profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
        self.begun += 1
        self.asked.set()
        report(FetchProgress(file="m.gguf", phase="downloading", completed=1, total=2))
        try:
            await self.deliver.wait()
        finally:
            self.ended.set()
        if self.error is not None:
            raise self.error
        return FILE


async def test_concurrent_callers_share_one_download_and_its_progress() -> None:
    source, received = Source(), []
    files = ModelFiles(source.prepare)
    got: list[Path] = []
    async with anyio.create_task_group() as tasks, anyio.create_task_group() as clients:
        files.tasks = tasks

        async def want(profile: Profile) -> None:
            got.append(await files.path(profile, received.append))

        clients.start_soon(want, PROFILE)
        await source.asked.wait()
        clients.start_soon(want, SAME)
        await anyio.wait_all_tasks_blocked()
        source.deliver.set()
    assert got == [FILE, FILE] and source.begun == 1
    assert [each.completed for each in received] == [1, 1]


async def test_a_cancelled_caller_does_not_stop_the_download_for_others() -> None:
    source = Source()
    files = ModelFiles(source.prepare)
    async with anyio.create_task_group() as tasks, anyio.create_task_group() as clients:
        files.tasks = tasks
        first = anyio.CancelScope()

        async def impatient() -> None:
            with first:
                await files.path(PROFILE)

        got: list[Path] = []

        async def patient() -> None:
            got.append(await files.path(PROFILE))

        clients.start_soon(impatient)
        await source.asked.wait()
        clients.start_soon(patient)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not source.ended.is_set()
        source.deliver.set()
    assert got == [FILE]


async def test_the_last_caller_to_leave_cancels_the_download_and_the_next_restarts_it() -> None:
    source = Source()
    files = ModelFiles(source.prepare)
    async with anyio.create_task_group() as tasks:
        files.tasks = tasks
        with anyio.CancelScope() as scope:
            tasks.start_soon(_when, source.asked, scope.cancel)
            await files.path(PROFILE)
        with anyio.fail_after(20):
            await source.ended.wait()
        source.deliver.set()
        assert await files.path(PROFILE) == FILE
    assert source.begun == 2


async def _when(event: anyio.Event, do: Callable[[], None]) -> None:
    await event.wait()
    do()


async def test_a_failed_download_has_its_reason() -> None:
    source = Source()
    source.error = SourceError("no such file over there")
    source.deliver.set()
    files = ModelFiles(source.prepare)
    async with anyio.create_task_group() as tasks:
        files.tasks = tasks
        with pytest.raises(SupervisorError, match="over there"):
            await files.path(PROFILE)


async def test_callers_fail_when_the_host_stops() -> None:
    source = Source()
    files = ModelFiles(source.prepare)
    failures: list[str] = []
    async with anyio.create_task_group() as clients, anyio.create_task_group() as tasks:
        files.tasks = tasks

        async def want() -> None:
            try:
                await files.path(PROFILE)
            except SupervisorError as error:
                failures.append(str(error))

        clients.start_soon(want)
        await source.asked.wait()
        tasks.cancel_scope.cancel()
    assert failures == ["the supervisor is stopping"]


def test_weights_of_other_formats_count_with_their_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "ggml-large-v3.bin"
    file.write_bytes(b"lmgg" + bytes(60_000))
    description = DownloadedFiles().describe(Profile(name="whisper", model=str(file)))
    assert (description.facts, description.size) == (None, 60_004)


def test_weights_in_a_folder_count_together(tmp_path: Path) -> None:
    for name, size in (("model-1.safetensors", 50_000), ("model-2.safetensors", 20_000), ("README.md", 9_000)):
        (tmp_path / name).write_bytes(bytes(size))
    assert DownloadedFiles().describe(Profile(name="qwen", model=str(tmp_path))).size == 70_000


async def test_reading_ahead_brings_all_shards_into_memory(tmp_path: Path) -> None:
    shards = [uncached_file(tmp_path / f"m-0000{number}-of-00002.gguf", 24 * 1024 * 1024) for number in (1, 2)]
    await ModelFiles().read_ahead(shards[0], 48 * 1024 * 1024)
    for shard in shards:
        await until_cached(shard)


async def test_weights_in_a_folder_are_read_ahead_too(tmp_path: Path) -> None:
    weights = uncached_file(tmp_path / "model.safetensors", 1024 * 1024)
    await ModelFiles().read_ahead(tmp_path, 1024 * 1024)
    await until_cached(weights)


async def test_a_model_larger_than_the_free_memory_is_not_read_ahead(tmp_path: Path) -> None:
    file = uncached_file(tmp_path / "model.gguf", 8 * 1024 * 1024)
    await ModelFiles().read_ahead(file, 8 * 1024 * 1024 - 1)
    assert cached_share(file) < 0.1


async def test_reading_ahead_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    file = uncached_file(tmp_path / "model.gguf", 64 * 1024 * 1024)
    cancelled = threading.Event()
    cancelled.set()
    read_ahead(file, 64 * 1024 * 1024, cancelled)
    assert cached_share(file) < 0.1


@pytest.mark.parametrize("name", ["missing.gguf", "m-00001-of-00002.gguf", "m-00001-of-99999.gguf"])
async def test_what_cannot_be_read_ahead_is_no_error(tmp_path: Path, name: str) -> None:
    await ModelFiles().read_ahead(tmp_path / name, 10**9)
