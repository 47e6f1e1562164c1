"""Watching the configuration file: what fails on the way is logged, and what was configured stays."""

from __future__ import annotations

import json
import logging
import os
import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
import watchfiles  # noqa: F401 - imported while files can still be opened

from hostler.gateway.config import Configuration, read
from hostler.gateway.config_reload import Reloader
from hostler.gateway.last_good import load
from hostler.profiles.schema import Profile

pytestmark = pytest.mark.anyio


def save(path: Path, *names: str) -> None:
    document = {"profiles": {name: {"model": "/m.gguf"} for name in names}}
    path.write_text(json.dumps(document))


class Told(logging.Handler):
    """Is set when the reloader has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.told = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.told.set()


@contextmanager
def no_more_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) - 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_files_are_polled_without_file_watching(tmp_path: Path) -> None:
    path, applied = tmp_path / "hostler.yaml", anyio.Event()
    save(path, "a")

    async def apply(_: Sequence[Profile]) -> None:
        applied.set()

    reloader, told = Reloader(read(path, {}), apply, {}), Told()
    logger = logging.getLogger("hostler.gateway.config_reload")
    logger.addHandler(told)
    try:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                with no_more_files():
                    tasks.start_soon(reloader.run)
                    await told.told.wait()
                save(path, "a", "b")
                await applied.wait()
                tasks.cancel_scope.cancel()
    finally:
        logger.removeHandler(told)


async def test_profiles_that_could_not_be_applied_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    applied: list[list[str]] = []
    save(path, "a")

    async def apply(profiles: Sequence[Profile]) -> None:
        applied.append([profile.name for profile in profiles])
        if len(applied) == 1:
            raise PermissionError(13, "Permission denied")

    reloader = Reloader(read(path, {}), apply, {})
    save(path, "a", "b")
    assert not await reloader.reload()
    assert await reloader.reload()
    assert applied == [["a", "b"], ["a", "b"]]


@asynccontextmanager
async def watching(configuration: Configuration) -> AsyncIterator[tuple[Reloader, Applied]]:
    """A reloader that runs, and what it has applied."""
    applied = Applied()
    reloader = Reloader(configuration, applied, {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reloader.run)
        with anyio.fail_after(20):
            yield reloader, applied
        tasks.cancel_scope.cancel()


class Applied:
    """The names of the profiles that were applied last."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._changed = anyio.Event()

    async def __call__(self, profiles: Sequence[Profile]) -> None:
        self.names = [profile.name for profile in profiles]
        self._changed.set()

    async def until(self, *names: str) -> None:
        while self.names != list(names):
            self._changed = anyio.Event()
            await self._changed.wait()


async def test_what_was_saved_between_reading_and_watching_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    save(path, "a")
    configuration = read(path, {})
    save(path, "b")
    async with watching(configuration) as (_, applied):
        await applied.until("b")


@pytest.mark.parametrize("how", ["swapped", "in place"])
async def test_a_link_to_another_file_of_the_same_size_and_time_is_followed(tmp_path: Path, how: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder, name in (("one", "a"), ("two", "b")):
        save(tmp_path / folder / "hostler.yaml", name)
        os.utime(tmp_path / folder / "hostler.yaml", (1_700_000_000, 1_700_000_000))
    current, path = tmp_path / "current", tmp_path / "hostler.yaml"
    current.symlink_to("one")
    path.symlink_to("current/hostler.yaml")
    async with watching(read(path, {})) as (_, applied):
        if how == "swapped":  # as Kubernetes does
            (tmp_path / "next").symlink_to("two")
            (tmp_path / "next").rename(current)
        else:
            save(tmp_path / "one" / "hostler.yaml", "b")
            os.utime(tmp_path / "one" / "hostler.yaml", (1_700_000_000, 1_700_000_000))
        await applied.until("b")


async def test_a_busy_log_beside_the_file_does_not_hide_changes_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "one", "a")
    save(tmp_path / "elsewhere" / "two", "b")
    path = tmp_path / "hostler.yaml"
    path.symlink_to("elsewhere/one")
    async with watching(read(path, {})) as (_, applied), anyio.create_task_group() as tasks:

        async def write_log() -> None:
            while True:
                (tmp_path / "hostler.log").write_text("a line")
                await anyio.sleep(0.01)

        tasks.start_soon(write_log)
        (tmp_path / "next").symlink_to("elsewhere/two")
        (tmp_path / "next").rename(path)
        await applied.until("b")
        tasks.cancel_scope.cancel()


async def test_mistakes_are_known_until_they_are_corrected(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    save(path, "a")
    applied = Applied()
    reloader = Reloader(read(path, {}), applied, {})
    path.write_text("profiles: {a: {modell: x}}")
    assert not await reloader.reload()
    assert reloader.errors is not None
    assert "did you mean model" in reloader.errors.mistakes[0]
    assert applied.names == []
    save(path, "a", "b")
    assert await reloader.reload()
    assert reloader.errors is None
    assert applied.names == ["a", "b"]


async def test_models_that_clients_create_are_applied_while_the_file_has_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    save(path, "a")
    applied = Applied()
    reloader = Reloader(read(path, {}), applied, {})
    path.write_text("profiles: [")
    path.with_name("hostler.models.yaml").write_text("profiles: {mine: {base: a}}")
    assert not await reloader.reload()
    assert applied.names == ["a", "mine"]


async def test_what_works_is_kept_and_used_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    save(path, "a")
    async with watching(read(path, {})) as (reloader, applied):
        save(path, "b")
        await applied.until("b")
        path.write_text("profiles: [")
        while reloader.errors is None:  # noqa: ASYNC110 - it is a value
            await anyio.sleep(0.01)
    again = load(path, {})
    assert [profile.name for profile in again.profiles] == ["b"]
    async with watching(again) as (reloader, applied):
        assert reloader.errors is not None
        save(path, "c")
        await applied.until("c")
        assert reloader.errors is None


async def test_it_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    save(path, "a")
    reloader = Reloader(read(path, {}), Applied(), {})
    # The thread that watches would look for a cancellation every 5 s.
    with anyio.fail_after(4):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reloader.run)
            await anyio.sleep(1)  # it watches by then
            tasks.cancel_scope.cancel()


async def test_it_keeps_running_whatever_is_saved(tmp_path: Path) -> None:
    path, applied = tmp_path / "hostler.yaml", anyio.Event()
    save(path, "a")

    async def apply(_: Sequence[Profile]) -> None:
        applied.set()

    def find(configuration: Configuration) -> Sequence[str]:
        if configuration.settings.variants:
            raise LookupError("unforeseen")
        return ()

    environ = {"XDG_STATE_HOME": str(tmp_path)}
    reloader = Reloader(read(path, environ), apply, environ, find_mistakes=find)
    for text in (
        "null",
        "~",
        "gateway: {api_keys_file: ~nosuchuser/keys}",
        'manifest: "\\0"',
        "variants: {v: {model: a}}",
    ):
        path.write_text(text)
        await reloader.reload()
    save(path, "a", "b")
    assert await reloader.reload()
    assert applied.is_set()
