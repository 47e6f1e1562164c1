"""Translates LM Studio's folder: its models, which stay where they are, and their settings. Blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from hostler.gateway.importing.lmstudio_definitions import (
    Definition,
    DefinitionReader,
    chain_of,
    mistake_in,
    places_of,
    read_definitions,
)
from hostler.gateway.importing.lmstudio_settings import ModelSettings
from hostler.gateway.importing.report import Imported, ImportFailed, ImportReport, NoteKind, ProfileNames
from hostler.profiles.file_reading import FileTooLarge, read_limited, real_path
from hostler.profiles.model_scan import FoundModel, ModelScan, profile_names, scan_models

_MAX_SETTINGS: Final = 1024 * 1024
_SETTINGS_FOLDER: Final = Path(".internal/user-concrete-model-default-config")


class _Field(msgspec.Struct, frozen=True):
    key: str
    value: Any = None


class _Fields(msgspec.Struct, frozen=True):
    fields: tuple[_Field, ...] = ()


class _SavedSettings(msgspec.Struct, frozen=True):
    load: _Fields = _Fields()
    operation: _Fields = _Fields()
    fields: tuple[_Field, ...] = ()


class _AppSettings(msgspec.Struct, frozen=True):
    downloadsFolder: str = ""


def import_lmstudio(folder: Path) -> Imported:
    """The models of LM Studio's folder, `~/.lmstudio`, or of its folder of models. Raises `ImportFailed`."""
    return _Translation(folder).run()


class _Translation:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models = _models_folder(folder)
        self._report = ImportReport(str(folder))
        self._scan: ModelScan = scan_models([self._models])
        self._names = ProfileNames(self._report)
        #: Definitions by the file of the model that they stand for.
        self._defined: dict[Path, list[list[Definition]]] = {}

    def run(self) -> Imported:
        """All models, and notes about what is not taken over."""
        files = {each.path: each for each in self._scan.models if not each.is_folder}
        self._definitions(files)
        names = profile_names(list(files))
        for name in names.values():
            self._names.claim(None, name, name)
        for path, found in files.items():
            self._add(found, names[path])
        for found in self._scan.models:
            if found.is_folder:
                text = "is no GGUF file; MLX and safetensors need an engine of their own"
                self._report.missing(None, self._place(found.path), text)
        for each in self._scan.left_out:
            self._report.missing(None, str(each.path), each.reason)
        if not self._scan.models:
            self._report.missing(None, str(self._models), "there is no model")
        return self._report.result()

    def _place(self, path: Path) -> str:
        """The path of a model as LM Studio names it: `PUBLISHER/REPOSITORY/FILE`."""
        return path.relative_to(self._models).as_posix() if path.is_relative_to(self._models) else path.name

    def _definitions(self, files: Mapping[Path, FoundModel]) -> None:
        places = {self._place(path).lower(): path for path in files}
        known = {each.name.lower(): each for each in read_definitions(self._folder, self._report)}
        for definition in known.values():
            chain = chain_of(definition, known)
            line, file = definition.source.line("base"), str(definition.file)
            found = places_of(chain, places)
            if not found:
                text = (
                    f"no file of {definition.name} is here: it is read once LM Studio or `hostler get` has fetched one"
                )
                self._report.missing(line, "base", text, file=file)
                continue
            if len(found) > 1:
                others = ", ".join(self._place(path) for path in found[1:])
                text = f"stands for {self._place(found[0])}; {others}: profiles of their own"
                self._report.changed(line, "base", text, file=file)
            else:
                self._report.taken(line, "base", f"stands for {self._place(found[0])}", file=file)
            self._defined.setdefault(found[0], []).append(chain)

    def _add(self, found: FoundModel, name: str) -> None:
        """The profile of a file, with the settings of the first definition that stands for it; one more for each other."""
        place = self._place(found.path)
        first, *others = self._defined.get(found.path, []) or [[]]
        profile = self._profile(found, first, place)
        if first:
            alias = self._names.claim_alias(first[-1].source.line("model"), "model", first[-1].name)
            if alias is not None:
                profile["aliases"] = [alias]
                line, file = first[-1].source.line("model"), str(first[-1].file)
                self._report.taken(line, "model", f"a second name of the profile {name}", file=file)
        self._report.set("profiles", name, value=profile)
        self._report.taken(None, place, f"the profile {name}")
        for chain in others:
            another = self._names.claim(chain[-1].source.line("model"), "model", chain[-1].name)
            self._report.set("profiles", another, value=self._profile(found, chain, place))
            self._report.taken(None, place, f"the profile {another}")

    def _profile(self, found: FoundModel, chain: list[Definition], place: str) -> dict[str, Any]:
        profile: dict[str, Any] = {"model": str(found.path)}
        if found.projector is not None:
            profile["mmproj"] = str(found.projector)
        if found.kind == "embeddings":
            profile["embeddings"] = True
        if found.kind == "rerank":
            profile["args"] = ["--reranking"]
        settings = ModelSettings()
        self._saved_settings(place, settings)
        for definition in chain:
            try:
                DefinitionReader(definition, self._report, settings).read()
            except ImportFailed as error:
                text = mistake_in(definition.file, error)
                self._report.missing(None, "model.yaml", text, file=str(definition.file))
            self._saved_settings(definition.name, settings)
        settings.add_to(profile)
        return profile

    def _saved_settings(self, name: str, settings: ModelSettings) -> None:
        """The settings that LM Studio saved for a model, by its place or its name, if there are any."""
        path = self._folder / _SETTINGS_FOLDER / f"{name}.json"
        if not path.is_file():
            return
        try:
            text = read_limited(path, _MAX_SETTINGS).decode("utf-8-sig")
            if "\0" in text or "\\u0000" in text:
                raise ValueError("is not a text file")
            saved = msgspec.json.decode(text, type=_SavedSettings)
        except (OSError, FileTooLarge, msgspec.DecodeError, ValueError) as error:
            self._report.missing(None, "settings", f"cannot be read: {error}", file=str(path))
            return

        for field in (*saved.load.fields, *saved.operation.fields, *saved.fields):
            at = text.find(f'"{field.key}"')
            line = text.count("\n", 0, at) + 1 if at >= 0 else None

            def note(kind: NoteKind, said: str, key: str = field.key, line: int | None = line) -> None:
                self._report.note(kind, line, key, said, file=str(path))

            settings.set(field.key, field.value, note)


def _models_folder(folder: Path) -> Path:
    chosen = ""
    settings = folder / "settings.json"
    if settings.is_file():
        try:
            chosen = msgspec.json.decode(read_limited(settings, _MAX_SETTINGS), type=_AppSettings).downloadsFolder
        except (OSError, FileTooLarge, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ImportFailed(f"{settings}: cannot be read: {error}") from None
    for candidate in (Path(chosen) if chosen else folder / "models", folder / "models"):
        if candidate.is_dir():
            return real_path(candidate)
    return real_path(folder)
