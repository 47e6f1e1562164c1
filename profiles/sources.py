"""Addresses of model files (a path, Hugging Face, a web address, a Python package) and where their files are kept."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from hostler.profiles.file_reading import home_path

_PYPI = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)")
_HF = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*?)(?:@([\w.-]+))?(?:/(.+)|:([\w.-]+))")
#: Without encryption, only this machine is asked.
_HTTPS = re.compile(
    r"(?:https://[^/?#@\s]+|http://(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?)/(?:[^/?#\s]*/)*([^/?#\s]+)(?:[?#]\S*)?"
)
_HUB = re.compile(r"(?:hub:)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
BLOCK = 1024 * 1024
REPORT_S = 0.1

DownloadPhase = Literal["waiting", "downloading", "unpacking", "verifying", "done"]


class SourceError(Exception):
    """A model's file is not available; the message says how to provide it."""


class UnusableDownload(SourceError):
    """The server or this machine's disk is at fault, and the message says so: a file put there by hand is no way out."""


class FetchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a fetch is. `total` is `None` while it is unknown; `waiting` is for another process's fetch."""

    file: str
    phase: DownloadPhase
    completed: int = 0
    total: int | None = None


ReportProgress = Callable[[FetchProgress], None]


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed model address. `file` is the path inside the package or repository, or on this machine.

    `origin` is the package, the repository or the whole address; `version` the exact version or the revision. Engines
    load a `hub` repository themselves, and have no model at all with `none`: neither is a file. With a `quantization`
    instead of a `file`, Hugging Face knows which file that is.
    """

    kind: Literal["path", "hf", "https", "pypi", "hub", "none"]
    file: str
    origin: str = ""
    version: str = ""
    quantization: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """Raises `SourceError` that names the valid forms."""
        kind, _, rest = text.partition(":")
        if kind == "hub":
            if not is_hub_name(text):
                raise SourceError(f"{text!r} does not have the form hub:organisation/repository")
            return cls(kind="hub", file=rest)
        if kind == "pypi":
            if (match := _PYPI.fullmatch(rest)) is None or not _is_plain(match[3]):
                raise SourceError(f"{text!r} does not have the form pypi:package==version/path/in/wheel.gguf")
            return cls(kind="pypi", origin=match[1], version=match[2], file=match[3])
        if kind == "hf":
            match = _HF.fullmatch(rest)
            if match is None or not _is_plain(match[4] or match[5]):
                raise SourceError(
                    f"{text!r} does not have the form hf:organisation/repository/file.gguf "
                    "or hf:organisation/repository:quantization"
                )
            return cls(
                kind="hf",
                origin=f"{match[1]}/{match[2]}",
                version=match[3] or "main",
                file=match[4] or "",
                quantization=match[5] or "",
            )
        if kind in ("https", "http"):
            match = _HTTPS.fullmatch(text)
            if match is None or not _is_plain(match[1]):
                raise SourceError(f"{text!r} does not have the form https://host/path/file.gguf")
            return cls(kind="https", origin=text, file=match[1])
        if (scheme := _SCHEME.match(text)) and not text.startswith("file:"):
            raise SourceError(f"unknown source {scheme[1]}:; use a path, hf:, hub:, https: or pypi:")
        if not text or "\0" in text:
            raise SourceError("must name a file: a path, hf:, https: or pypi:")
        return cls(kind="path", file=text)

    @property
    def is_file(self) -> bool:
        """Whether the model is a file or a folder here, or can be downloaded as one."""
        return self.kind not in ("hub", "none")

    @property
    def name(self) -> str:
        """The file's name without its folder, or what stands for it."""
        return self.file.rpartition("/")[2] or f"{self.origin}:{self.quantization}"

    def shards(self) -> list[ModelSource]:
        """Every file of the model: several where its name ends in `-00001-of-0000N.gguf`."""
        if self.kind not in ("hf", "pypi"):
            return [self]
        return [msgspec.structs.replace(self, file=name) for name in part_paths(self.file)]

    def local_path(self, cache: Path) -> Path:
        """Where the file is kept below the cache directory (a `path` source: where it is)."""
        models = cache / "models"
        # On Windows a colon begins a drive or another stream of a file: `C:/x` would be outside of the cache.
        file = self.file.replace(":", "-") if sys.platform == "win32" else self.file
        match self.kind:
            case "path" | "hub" | "none":
                return home_path(self.file)
            case "pypi":
                return models / "pypi" / f"{self.origin}-{self.version}" / file
            case "hf":
                folder = models / "hf" / self.origin
                return (folder if self.version == "main" else folder / f"@{self.version}") / file
            case "https":
                return models / "https" / hashlib.sha256(self.origin.encode()).hexdigest()[:16] / file


def is_hub_name(text: str) -> bool:
    """Whether this can be the name of a repository on the Hugging Face Hub: `organisation/repository`."""
    return _HUB.fullmatch(text) is not None


def source_of(model: str) -> ModelSource:
    """The source of a resolved profile's model, which may have none. Raises `SourceError`."""
    return ModelSource.parse(model) if model else ModelSource(kind="none", file="")


def part_paths(path: str) -> list[str]:
    """Every file of a model: several where its name ends in `-00001-of-0000N.gguf`."""
    match = _SHARD.fullmatch(path)
    if match is None or not 1 <= int(match[3]) <= 999:
        return [path]
    return [f"{match[1]}-{part:05}-of-{match[3]}{match[4]}" for part in range(1, int(match[3]) + 1)]


def cache_directory(env: Mapping[str, str] | None = None) -> Path:
    """`$HOSTLER_CACHE`, else `hostler` in the platform's folder for caches."""
    env = os.environ if env is None else env
    if explicit := env.get("HOSTLER_CACHE"):
        return home_path(explicit)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hostler"
    if sys.platform == "win32" and not env.get("XDG_CACHE_HOME"):
        return home_path(env.get("LOCALAPPDATA") or "~/AppData/Local") / "hostler" / "cache"
    base = env.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hostler"


def _is_plain(path: str) -> bool:
    return (
        not any(segment in ("", ".", "..") for segment in path.split("/")) and path.isprintable() and "\\" not in path
    )
