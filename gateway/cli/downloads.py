"""Downloads of model files and engines with their progress: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import cached, fetch_sync
from hostler.profiles.schema import Profile
from hostler.profiles.sources import (
    DownloadPhase,
    FetchProgress,
    ModelSource,
    ReportProgress,
    SourceError,
    cache_directory,
)

__all__ = ["SourceError", "download", "download_archive", "log_progress"]

logger = logging.getLogger(__name__)

_STEP = 10  # percent between two log lines


def download(profile: Profile) -> Path:
    """The profile's file, downloaded unless it is in the cache. Blocks. Raises `SourceError`."""
    path = cached(profile)
    if path is not None:
        return path
    return _run(profile.name, lambda report, cancellation: fetch_sync(profile, cache_directory(), report, cancellation))


def download_archive(url: str, folder: Path, *, sha256: str | None, limit: int) -> Path:
    """Download an archive of up to `limit` bytes into a folder, and check its checksum. Blocks. Raises `SourceError`."""
    source = ModelSource.parse(url)
    if source.kind != "https":
        raise SourceError(f"{url!r} is not an https address")
    target = folder / source.name

    def work(report: ReportProgress, cancellation: Cancellation) -> Path:
        from hostler.profiles.http_download import download_url  # 0.2 s: httpx

        def bounded(phase: DownloadPhase, completed: int, total: int | None) -> None:
            if max(completed, total or 0) > limit:
                raise SourceError(f"{url} is larger than {limit} bytes")
            report(FetchProgress(file=source.name, phase=phase, completed=completed, total=total))

        actual = download_url(url, target, bounded, cancellation)
        if sha256 is not None and actual != sha256:
            raise SourceError(f"{url} has the SHA-256 {actual}, expected {sha256}")
        return target

    return _run(source.name, work)


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


_Work = Callable[[ReportProgress, Cancellation], Path]


def _run(name: str, work: _Work) -> Path:
    """Do the work, and show its progress."""
    return _run_with_bar(name, work) if sys.stderr.isatty() else _run_in_thread(work, log_progress())


def _run_with_bar(name: str, work: _Work) -> Path:
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
        task = bar.add_task(name, total=None, phase="downloading")

        def listen(progress: FetchProgress) -> None:
            bar.update(
                task,
                description=progress.file,
                completed=progress.completed,
                total=progress.total,
                phase=progress.phase,
            )

        return _run_in_thread(work, listen)


def _run_in_thread(work: _Work, report: ReportProgress) -> Path:
    """Do the work in a thread: Ctrl-C is handled at once, and the thread can clean up."""
    cancellation = Cancellation()
    result: list[Path | BaseException] = []

    def run() -> None:
        try:
            result.append(work(report, cancellation))
        except BaseException as error:  # raised in the waiting thread
            result.append(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
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
