"""Watching the configuration file: what fails on the way is logged, and what was configured stays."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
import watchfiles  # noqa: F401 - imported while files can still be opened

from hostler.gateway.config import read
from hostler.gateway.config_reload import Reloader
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
