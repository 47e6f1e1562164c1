"""Finds the models in folders: GGUF files with the files that belong to them, folders of safetensors, and what is left out.

Blocks, and reads headers only.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import msgspec

from hostler.profiles.companions import best_projector, draft_of, is_draft, is_projector, model_stem, projector_base
from hostler.profiles.file_reading import real_path
from hostler.profiles.gguf import GGUFError, ReadFacts, read_facts, shard_paths
from hostler.profiles.model_folder import folder_facts, folder_mistake, is_model_folder, weight_files
from hostler.profiles.schema import ModelFacts

#: What a model is for, as its header says.
FoundKind = Literal["chat", "embeddings", "rerank"]

#: Folders below a folder, names in all, and files of models, that a scan looks at.
MAX_DEPTH: Final = 16
MAX_NAMES: Final = 200_000
MAX_FILES: Final = 10_000

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)

#: Architectures that only give embeddings, also where the header names no kind of pooling.
_ENCODERS: Final = frozenset(
    {
        "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
        "nomic-bert-moe", "t5encoder",
    }
)  # fmt: skip
#: llama.cpp's number for the pooling of rerankers.
_RANK_POOLING: Final = 4

#: Beside a file that is being downloaded, as curl, wget, aria2, browsers and download managers name it.
_IN_PROGRESS: Final = (".aria2", ".part", ".crdownload", ".download", ".incomplete", ".tmp")

#: Values of the header's `general.type` of files that are no models, and what they are.
_OTHER_TYPES: Final = {"adapter": "a LoRA adapter", "imatrix": "an importance matrix", "vocab": "a vocabulary"}


#: Models of whisper.cpp, which `whisper-server` runs.
_WHISPER: Final = "is for whisper.cpp: add a profile with this model and `engine: whisper-server`"


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model with the files that it is served with. `path` is its first part, `size` the bytes of all of its own parts."""

    path: Path
    kind: FoundKind
    facts: ModelFacts
    projector: Path | None = None
    draft: Path | None = None

    @property
    def size(self) -> int:
        return self.facts.bytes

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of safetensors, for engines other than llama.cpp's."""
        return self.facts.declared

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that it consists of."""
        if self.is_folder:
            return (self.path / "config.json", *weight_files(self.path))
        others = tuple(path for path in (self.projector, self.draft) if path is not None)
        return (*shard_paths(self.path), *others)


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder that a scan does not use, and the reason."""

    path: Path
    reason: str


class ModelScan(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, in the order of paths."""

    models: tuple[FoundModel, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def scan_models(places: Iterable[Path], *, read: ReadFacts = read_facts) -> ModelScan:
    """The models in these folders, with those below them, and in these files, whatever their names. Never raises.

    A file that several names lead to counts once. Hidden folders and files are not looked at.
    """
    left_out: list[LeftOut] = []
    facts: dict[Path, ModelFacts] = {}
    folders: list[FoundModel] = []
    for path in _files(places, left_out):
        if _is_folder(path):
            if (mistake := folder_mistake(path)) is not None:
                left_out.append(LeftOut(path=path, reason=mistake))
            else:
                folders.append(FoundModel(path=path, kind="chat", facts=folder_facts(path)))
            continue
        try:
            facts[path] = read(path)
        except GGUFError as error:
            left_out.append(LeftOut(path=path, reason=_reason(error, path)))
    models = [*_with_companions(facts, left_out), *folders]
    return ModelScan(
        models=tuple(sorted(models, key=lambda each: each.path)),
        left_out=tuple(sorted(left_out, key=lambda each: each.path)),
    )


def _files(places: Iterable[Path], left_out: list[LeftOut]) -> Iterator[Path]:
    """The first part of each model, and single files, in the order of paths."""
    seen: set[Path] = set()
    for place in places:
        if not _is_folder(place):
            # Named by the user: it may have any name, as in a store of blobs.
            candidates: Iterable[Path] = [place]
        else:
            below = _below(place, left_out)
            left_out += [LeftOut(path=path, reason=_WHISPER) for path in below if _is_for_whisper(path)]
            candidates = [path for path in below if path.suffix.lower() == ".gguf" or _is_folder(path)]
        for path in _first_parts(candidates, left_out):
            real = real_path(path)
            if not _is_text(path):
                left_out.append(LeftOut(path=path, reason="has a name that is not text in UTF-8: rename it"))
            elif real not in seen:
                seen.add(real)
                yield path


def _below(folder: Path, left_out: list[LeftOut]) -> list[Path]:
    """The files that may be models, and model folders, below a folder; links are followed, but no folder is entered twice."""
    found: list[Path] = []
    entered: set[Path] = set()
    waiting = [(folder, 0)]
    seen = 0
    while waiting:
        current, depth = waiting.pop()
        real = real_path(current)
        if real in entered:
            continue
        entered.add(real)
        if is_model_folder(current):
            found.append(current)
            continue
        try:
            with os.scandir(current) as listed:
                entries = sorted(islice(listed, MAX_NAMES - seen + 1), key=lambda entry: entry.name)
        except OSError as error:
            left_out.append(LeftOut(path=current, reason=f"cannot be read: {error.strerror or error}"))
            continue
        seen += len(entries)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if _is_folder(path) if entry.is_symlink() else entry.is_dir():
                if depth < MAX_DEPTH:
                    waiting.append((path, depth + 1))
            elif entry.name.lower().endswith((".gguf", ".bin")):
                found.append(path)
        if seen > MAX_NAMES or len(found) > MAX_FILES:
            limit = f"{MAX_NAMES} files" if seen > MAX_NAMES else f"{MAX_FILES} files of models"
            left_out.append(LeftOut(path=folder, reason=f"has more than {limit}; the others are not looked at"))
            break
    return sorted(found[:MAX_FILES])


def _is_folder(path: Path) -> bool:
    """Whether this is a folder. It is none where nothing may be looked up."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_text(path: Path) -> bool:
    """Whether a configuration file, or an answer in JSON, can name the path."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_for_whisper(path: Path) -> bool:
    """Whether this is named like the models of whisper.cpp, `ggml-base.en.bin`."""
    return path.name.startswith("ggml-") and path.suffix.lower() == ".bin"


def _first_parts(candidates: Iterable[Path], left_out: list[LeftOut]) -> Iterator[Path]:
    """Without later parts of split models, and without files that a download is writing."""
    orphans: dict[Path, int] = {}
    for path in candidates:
        match = _SHARD.fullmatch(path.name)
        if match is not None and int(match[2]) != 1:
            first = path.with_name(f"{match[1]}-00001-of-{match[3]}{path.suffix}")
            if not os.path.lexists(first):
                orphans[first] = orphans.get(first, 0) + 1
        elif (partial := _partial_beside(path)) is not None:
            left_out.append(LeftOut(path=path, reason=f"is being downloaded: {partial.name} is beside it"))
        else:
            yield path
    left_out += [LeftOut(path=first, reason="is missing, but later parts of it are there") for first in orphans]


def _partial_beside(path: Path) -> Path | None:
    names = [path.with_name(path.name + suffix) for suffix in _IN_PROGRESS]
    return next((each for each in names if os.path.lexists(each)), None)


def _reason(error: GGUFError, path: Path) -> str:
    """The error without the path of the file itself; files beside it are named without their folder."""
    return error.message.removeprefix(f"{path} ").replace(f"{path.parent}{os.sep}", "beside it, ", 1)


def _with_companions(facts: dict[Path, ModelFacts], left_out: list[LeftOut]) -> list[FoundModel]:
    projectors = {path: each for path, each in facts.items() if is_projector(path, each)}
    drafts = {path: each for path, each in facts.items() if path not in projectors and is_draft(path, each)}
    models: list[FoundModel] = []
    for path, each in facts.items():
        if path in projectors or path in drafts:
            continue
        if (reason := _no_model(each)) is not None:
            left_out.append(LeftOut(path=path, reason=reason))
        else:
            models.append(FoundModel(path=path, kind=kind_of(each), facts=each))
    chats = {model.path: model.facts for model in models if model.kind == "chat"}
    used: set[Path] = set()
    paired = []
    for model in models:
        if model.kind == "chat":
            projector = best_projector(model.path, model.facts, projectors, chats)
            draft = draft_of(model.path, model.facts, drafts, chats)
            used.update(path for path in (projector, draft) if path is not None)
            model = msgspec.structs.replace(model, projector=projector, draft=draft)
        paired.append(model)
    left_out += _unused(projectors, used, chats)
    left_out += [
        LeftOut(path=path, reason="is a draft for another model, which was not found beside it")
        for path in drafts
        if path not in used
    ]
    return paired


def _unused(projectors: Iterable[Path], used: set[Path], chats: Iterable[Path]) -> Iterator[LeftOut]:
    paired_folders = {path.parent for path in used}
    for path in projectors:
        if path in used:
            continue
        if path.parent in paired_folders and any(projector_base(path) == projector_base(other) for other in used):
            yield LeftOut(path=path, reason="is a projector of a model that another one is used for")
        elif any(chat.parent == path.parent for chat in chats):
            yield LeftOut(path=path, reason="is a projector, but does not belong to a model beside it")
        else:
            yield LeftOut(path=path, reason="is a projector without a model beside it")


def _no_model(facts: ModelFacts) -> str | None:
    kind = facts.metadata.get("general.type")
    if isinstance(kind, str) and kind in _OTHER_TYPES:
        return f"is {_OTHER_TYPES[kind]}, not a model"
    if not facts.architecture:
        return "names no architecture in its header"
    return "has no weights" if not facts.parameters else None


def kind_of(facts: ModelFacts) -> FoundKind:
    """What a model with this header is for."""
    if facts.metadata.get(f"{facts.architecture}.pooling_type") == _RANK_POOLING:
        return "rerank"
    is_encoder = facts.architecture in _ENCODERS or "embedding" in facts.capabilities
    return "embeddings" if is_encoder else "chat"


def profile_names(paths: Sequence[Path], taken: Iterable[str] = ()) -> dict[Path, str]:
    """A profile's name for each model, from its file's name; with that of its folder in front where several have it.

    `taken` names, in lower case, are not used again.
    """
    used = set(taken)
    found: dict[Path, str] = {}
    for path in paths:
        stem = _valid(model_stem(path))
        folders = [_valid(each.name) for each in path.parents if each.name]
        choices = [stem, *("-".join([*reversed(folders[:count]), stem]) for count in range(1, len(folders) + 1))]
        name = next((each for each in choices if each not in used and len(each) <= 128), None)
        number = 2
        while name is None or name in used:
            name, number = f"{stem[:120]}-{number}", number + 1
        used.add(name)
        found[path] = name
    return found


def _valid(text: str) -> str:
    """The text in small letters of the Latin alphabet, without accents."""
    plain = re.sub(r"[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))
    return re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-._") or "model"
