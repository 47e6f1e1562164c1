"""Which file a quantization of a repository stands for, `hf:org/repo:Q4_K_M`: asked once, and kept in the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hostler.profiles.sources import ModelSource, SourceError

if TYPE_CHECKING:
    from hostler.profiles.downloads import Cancellation


class _Answer(msgspec.Struct, frozen=True):
    """A file that the hub named."""

    file: str


def known_file(source: ModelSource, cache: Path) -> ModelSource | None:
    """The source with its file, as the hub named it before. `None`: it was never asked. Uses no network."""
    if not source.quantization:
        return source
    try:
        answer = msgspec.json.decode(_path(source, cache).read_bytes(), type=_Answer)
        return ModelSource.parse(_text(source, answer.file))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, SourceError):
        return None


def find_file(source: ModelSource, cache: Path, cancellation: Cancellation) -> ModelSource:
    """The source with its file. The hub is asked until the file is here, since repositories change. Blocks.

    Raises `SourceError` if there is no such quantization, with those that exist, or if the hub does not say.
    """
    if not source.quantization:
        return source
    known = known_file(source, cache)
    if known is not None and all(part.local_path(cache).is_file() for part in known.shards()):
        return known
    from hostler.profiles.hub import choose, read_repository  # 0.2 s: httpx
    from hostler.profiles.hub_reference import HubReference

    reference = HubReference(registry="hub", repository=source.origin, revision=source.version, tag=source.quantization)
    try:
        repository = read_repository(reference, cancellation)
    except SourceError:
        if known is not None:
            return known
        raise
    model = choose(repository, reference)
    if model is None:
        kinds = ", ".join(each.quantization for each in repository.models)
        raise SourceError(f"{source.origin}:{source.quantization} names no quantization; it has: {kinds}")
    found = ModelSource.parse(_text(source, model.files[0].path))
    _store(_path(source, cache), _Answer(file=found.file))
    return found


def _text(source: ModelSource, file: str) -> str:
    return f"hf:{source.origin}@{source.version}/{file}"


def _path(source: ModelSource, cache: Path) -> Path:
    return cache / "models" / "hf" / source.origin / ".quantizations" / source.version / f"{source.quantization}.json"


def _store(path: Path, answer: _Answer) -> None:
    """Keep it. Where that is impossible, the hub is asked again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(answer))
        fresh.replace(path)
    except OSError:
        return
