"""What the Hugging Face Hub has: repositories for some words, and the models in one, with sizes and checksums.

Blocks: runs in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from hostler.profiles.companions import drafts_by_name
from hostler.profiles.downloads import Cancellation
from hostler.profiles.gguf import facts_of_start
from hostler.profiles.hub_access import hub_address, hub_credentials, hub_endpoint
from hostler.profiles.hub_reference import HubReference
from hostler.profiles.schema import ModelFacts
from hostler.profiles.sources import SourceError, part_paths

_T = TypeVar("_T")

#: Bytes of an answer of the hub's API, and pages of a list of files, at most.
_MAX_ANSWER: Final = 16 * 1024**2
_MAX_PAGES: Final = 20
_MAX_FOUND: Final = 20
#: The keys of a model's architecture stand before its tokenizer, within the first bytes of its file.
_HEADER_START: Final = 512 * 1024

_QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|F16|F32|FP16|FP32|MXFP4(?:_MOE)?|NVFP4))(?=[-._/]|$)",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
#: What is taken where nothing is asked for, as llama-server and Ollama do, if it fits.
USUAL: Final = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0", "MXFP4", "F16")


class HubFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a repository. `sha256` is empty where the hub does not say."""

    path: str
    size: int = 0
    sha256: str = ""


class HubModel(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a model is stored: its files in order, more than one if it is split."""

    quantization: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class HubRepository(msgspec.Struct, frozen=True, kw_only=True):
    """The models of a repository, the smallest first, their projectors, and small models that draft for them. `license` is
    empty where the hub names none."""

    name: str
    revision: str
    models: tuple[HubModel, ...]
    projectors: tuple[HubFile, ...] = ()
    drafts: tuple[HubFile, ...] = ()
    license: str = ""

    def source(self, file: HubFile) -> str:
        """The file as a profile names it."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.name}{revision}/{file.path}"

    def projector(self) -> HubFile | None:
        """The projector to use: one in half precision if there is a choice."""
        order = ("F16", "BF16", "Q8_0", "F32")
        ranked = sorted(self.projectors, key=lambda file: file.path)
        names = {name: place for place, name in enumerate(order)}
        return min(ranked, key=lambda file: names.get(quantization_of(file.path).upper(), len(order)), default=None)

    def draft(self, model: HubModel) -> HubFile | None:
        """The draft to use with a model, which is smaller: one in eight bits if there is a choice."""
        order = ("Q8_0", "Q4_K_M", "Q4_0", "F16", "BF16")
        names = {name: place for place, name in enumerate(order)}
        smaller = sorted((file for file in self.drafts if file.size * 2 <= model.size), key=lambda file: file.path)
        return min(smaller, key=lambda file: names.get(quantization_of(file.path).upper(), len(order)), default=None)


class HubResult(msgspec.Struct, frozen=True, kw_only=True):
    """A repository that a search found."""

    name: str = msgspec.field(name="id")
    downloads: int = 0
    likes: int = 0
    gated: bool | str = False
    private: bool = False


class _Lfs(msgspec.Struct, frozen=True):
    oid: str = ""
    sha256: str = ""
    size: int = 0


class _TreeEntry(msgspec.Struct, frozen=True):
    type: Literal["file", "directory"] | str = "file"
    path: str = ""
    size: int = 0
    lfs: _Lfs | None = None


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Info(msgspec.Struct, frozen=True):
    siblings: tuple[_Sibling, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def license(self) -> str:
        found = (tag.partition(":")[2] for tag in self.tags if tag.startswith("license:"))
        return next(found, "")


def search(words: str, cancellation: Cancellation) -> list[HubResult]:
    """Repositories with GGUF files for these words, the most used first. Raises `SourceError`."""
    query = urlencode(
        {"search": words, "filter": "gguf", "sort": "downloads", "direction": "-1", "limit": str(_MAX_FOUND)}
    )
    found, _ = _get(f"{hub_endpoint()}/api/models?{query}", list[HubResult], cancellation)
    return found[:_MAX_FOUND]


def read_repository(reference: HubReference, cancellation: Cancellation) -> HubRepository:
    """The models of a repository. Raises `SourceError` if there is none, if it is gated, or if it has no GGUF files."""
    files, licence = _files(reference, cancellation)
    gguf = [file for file in files if file.path.lower().endswith(".gguf")]
    projectors = tuple(file for file in gguf if "mmproj" in file.path.lower())
    others = [file for file in gguf if file not in projectors]
    models, drafts = _without_drafts(_grouped(others), reference.file)
    if not models:
        if gguf:
            raise SourceError(
                f"{reference.repository} has GGUF files, but no whole model: there are only projectors, or parts of a model "
                f"without the others ({', '.join(file.path for file in gguf[:3])})"
            )
        raise SourceError(
            f"{reference.repository} has no GGUF files; look for a repository with GGUF in its name, or "
            f"run it with an engine that loads it itself, such as vllm: `model: hub:{reference.repository}`"
        )
    return HubRepository(
        name=reference.repository, revision=reference.revision, models=models, projectors=projectors, drafts=drafts,
        license=_license(reference, cancellation) if licence is None else licence,
    )  # fmt: skip


def _without_drafts(found: Sequence[HubModel], wanted: str) -> tuple[tuple[HubModel, ...], tuple[HubFile, ...]]:
    """The models, the smallest first, and the files that draft for them by their names and sizes; not the `wanted` file."""
    named = [each for each in found if len(each.files) == 1 and drafts_by_name(PurePosixPath(each.files[0].path))]
    largest = max((each.size for each in found if each not in named), default=0)
    drafts = [each for each in named if each.size * 2 <= largest and each.files[0].path != wanted]
    models = sorted((each for each in found if each not in drafts), key=lambda model: model.size)
    return tuple(models), tuple(each.files[0] for each in drafts)


def choose(repository: HubRepository, reference: HubReference) -> HubModel | None:
    """The model that a reference names; `None` if it names none in particular. Raises `SourceError` if there is no such."""
    models = repository.models
    if reference.file:
        fitting = [each for each in models if any(file.path == reference.file for file in each.files)]
    elif not reference.tag or reference.tag.lower() == "latest":
        return None
    else:
        tag = reference.tag.lower()
        fitting = [each for each in models if each.quantization.lower() == tag]
        fitting = fitting or _usual_first([each for each in models if each.quantization.lower().startswith(tag)])
        fitting = fitting or [each for each in models if tag in each.files[0].path.lower()]
    if not fitting:
        known = ", ".join(each.quantization for each in models)
        raise SourceError(f"{repository.name} has no {reference.file or reference.tag}; it has: {known}")
    return fitting[0]


def usual(models: Sequence[HubModel]) -> HubModel:
    """The model to take where nothing is asked for, among those that fit."""
    return _usual_first(models)[0]


def read_remote_facts(repository: HubRepository, model: HubModel, cancellation: Cancellation) -> ModelFacts:
    """What the start of a model's file says, with the size of all of its files. Empty if it says nothing.

    Raises `SourceError` if the file cannot be read.
    """
    from hostler.profiles.http_download import WebAnswer, read_start  # 0.2 s: httpx

    url = f"{hub_endpoint()}/{repository.name}/resolve/{quote(repository.revision)}/{quote(model.files[0].path)}"
    try:
        start = read_start(url, hub_credentials(), _HEADER_START, cancellation)
    except WebAnswer as answer:
        raise answer.error from None
    return facts_of_start(start, size=model.size)


def quantization_of(path: str) -> str:
    """How a file is stored, by its name; empty if the name does not say."""
    found = _QUANTIZATION.findall(_PART.sub("", path).removesuffix(".gguf"))
    return str(found[-1]) if found else ""


def _usual_first(models: Sequence[HubModel]) -> list[HubModel]:
    places = {name: place for place, name in enumerate(USUAL)}
    return sorted(models, key=lambda model: (places.get(model.quantization.upper(), len(USUAL)), -model.size))


def _files(reference: HubReference, cancellation: Cancellation) -> tuple[list[HubFile], str | None]:
    """The files, and the licence if that has been read with them."""
    from hostler.profiles.http_download import WebAnswer

    base = f"{hub_endpoint()}/api/models/{reference.repository}"
    url: str = f"{base}/tree/{quote(reference.revision)}?recursive=true"
    found: list[HubFile] = []
    try:
        for _ in range(_MAX_PAGES):
            entries, url = _get(url, list[_TreeEntry], cancellation)
            found += [_hub_file(each.path, each.size, each.lfs) for each in entries if each.type == "file"]
            if not url:
                break
    except WebAnswer as answer:
        if answer.status != 404:
            raise _explained(answer, reference) from None
        # Mirrors may have the information about a model only.
        try:
            info, _ = _get(f"{base}?blobs=true", _Info, cancellation)
        except WebAnswer as second:
            raise _explained(second, reference) from None
        return [_hub_file(each.rfilename, each.size or 0, each.lfs) for each in info.siblings], info.license
    return found, None


def _license(reference: HubReference, cancellation: Cancellation) -> str:
    """What the hub calls the licence; empty where it does not say. A model is got without it, too."""
    from hostler.profiles.http_download import WebAnswer

    try:
        return _get(f"{hub_endpoint()}/api/models/{reference.repository}", _Info, cancellation)[0].license
    except (WebAnswer, SourceError):
        cancellation.check()
        return ""


def _explained(answer: Exception, reference: HubReference) -> SourceError:
    from hostler.profiles.http_download import WebAnswer

    assert isinstance(answer, WebAnswer)
    if answer.status == 404:
        return SourceError(f"there is no repository {reference.repository} at {hub_address()}")
    return SourceError(f"{reference.repository}: {answer.error}")


def _hub_file(path: str, size: int, lfs: _Lfs | None) -> HubFile:
    oid = "" if lfs is None else (lfs.oid or lfs.sha256).removeprefix("sha256:")
    checksum = oid if re.fullmatch(r"[0-9a-f]{64}", oid) else ""
    return HubFile(path=path, size=size or (lfs.size if lfs is not None else 0), sha256=checksum)


def _grouped(files: Iterable[HubFile]) -> list[HubModel]:
    """Files as models: parts of one model together, those with a part missing left out."""
    by_path = {file.path: file for file in files}
    models = []
    for path, _file in sorted(by_path.items()):
        part = _PART.search(path)
        if part is not None and int(part[1]) != 1:
            continue
        parts = [by_path.get(each) for each in part_paths(path)]
        whole = tuple(each for each in parts if each is not None)
        if len(whole) == len(parts):
            name = quantization_of(path) or path.rpartition("/")[2].removesuffix(".gguf")
            models.append(HubModel(quantization=name, files=whole))
    return models


def _get(url: str, shape: type[_T], cancellation: Cancellation) -> tuple[_T, str]:
    """The decoded answer, and the address of the next page."""
    from hostler.profiles.http_download import WebAnswer, read_page

    try:
        body, following = read_page(url, hub_credentials(), cancellation, limit=_MAX_ANSWER)
    except WebAnswer as answer:
        if "/api/models?" in url:
            raise answer.error from None
        raise
    try:
        return msgspec.json.decode(body, type=shape), following
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{hub_address()} answers, but not like the Hugging Face Hub: {error}") from None
