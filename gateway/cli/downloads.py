"""Downloads of model files with their progress: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import cached, fetch_sync
from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, SourceError, cache_directory

__all__ = ["SourceError", "download", "log_progress"]

logger = logging.getLogger(__name__)

_STEP = 10  # percent between two log lines


def download(profile: Profile) -> Path:
    """The profile's file, downloaded unless it is in the cache. Blocks. Raises `SourceError`."""
    path = cached(profile)
    if path is not None:
        return path
    if sys.stderr.isatty():
        return _download_with_bar(profile)
    return _blocking(profile, log_progress())


def log_progress() -> Callable[[FetchProgress], None]:
    """A listener that logs the beginning, every ten percent, and the end."""
    last: tuple[str, int] = ("", -1)

    def listen(progress: FetchProgress) -> None:
        nonlocal last
        step = 100 * progress.completed // progress.total // _STEP if progress.total else -1
        if (progress.phase, step) == last:
            return
        last = (progress.phase, step)
        amount = f" {_megabytes(progress.completed)} of {_megabytes(progress.total)} MB" if progress.total else ""
        logger.info("%s: %s%s", progress.file, progress.phase, amount)

    return listen


def _download_with_bar(profile: Profile) -> Path:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[phase]}"),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(profile.name, total=None, phase="downloading")

        def listen(progress: FetchProgress) -> None:
            bar.update(
                task,
                description=progress.file,
                completed=progress.completed,
                total=progress.total,
                phase=progress.phase,
            )

        return _blocking(profile, listen)


def _blocking(profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
    """Download in a thread: Ctrl-C is handled at once, and the thread can clean up."""
    cancellation = Cancellation()
    result: list[Path | BaseException] = []

    def work() -> None:
        try:
            result.append(fetch_sync(profile, cache_directory(), report, cancellation))
        except BaseException as error:  # raised in the waiting thread
            result.append(error)

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except KeyboardInterrupt:
        cancellation.cancel()
        thread.join(5.0)
        raise
    outcome = result[0]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _megabytes(size: int | None) -> int:
    return 0 if size is None else round(size / 1e6)
