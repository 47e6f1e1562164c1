"""LM Studio's definitions of models, `model.yaml`: the files that one stands for, and the settings that it brings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from hostler.gateway.importing.lmstudio_settings import ModelSettings, Noted
from hostler.gateway.importing.report import ImportFailed, ImportReport, NoteKind
from hostler.gateway.importing.yaml_source import YamlSource
from hostler.profiles.file_reading import FileTooLarge, read_limited

#: Where definitions are in LM Studio's folder: `PUBLISHER/MODEL/model.yaml`.
FOLDER: Final = Path("hub/models")
_MAX_DEFINITION: Final = 1024 * 1024
_MAX_DEFINITIONS: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}/[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}")
#: What a definition says about a model for people to read, and to find it.
_DISPLAYED: Final = ("metadataOverrides", "tags", "description")


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A definition as it was read. `bases` are the models that it may stand for, the best one first, in lower case:
    `PUBLISHER/REPOSITORY`, with the name of a file, or the name of another definition."""

    name: str
    file: Path
    bases: tuple[str, ...]
    source: YamlSource


def read_definitions(folder: Path, report: ImportReport) -> Iterator[Definition]:
    """The definitions in LM Studio's folder, in the order of their paths; those that cannot be read are noted. Blocks."""
    for file in sorted((folder / FOLDER).glob("*/*/model.yaml"))[:_MAX_DEFINITIONS]:
        try:
            source = YamlSource(read_limited(file, _MAX_DEFINITION).decode("utf-8-sig"), str(file))
            yield Definition(name=_name(source), file=file, bases=tuple(_bases(source)), source=source)
        except (OSError, FileTooLarge, UnicodeDecodeError) as error:
            report.missing(None, "model.yaml", f"cannot be read: {error}", file=str(file))
        except ImportFailed as error:
            report.missing(None, "model.yaml", mistake_in(file, error), file=str(file))


def mistake_in(file: Path, error: ImportFailed) -> str:
    """What is wrong with a definition, without the path that its note has."""
    return f"cannot be read: line {str(error).removeprefix(f'{file}:').strip()}"


def _name(source: YamlSource) -> str:
    name = source.value.get("model")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise source.failure(("model",), "expected the name of the model, PUBLISHER/MODEL")
    return name


def _bases(source: YamlSource) -> Iterator[str]:
    given = source.value.get("base")
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, str):
            yield each.lower()
        elif isinstance(each, dict):
            if isinstance(key := each.get("key"), str):
                yield key.lower()
            sources = each.get("sources")
            for place in sources if isinstance(sources, list) else ():
                if isinstance(place, dict) and place.get("user") and place.get("repo"):
                    yield f"{place['user']}/{place['repo']}".lower()


def chain_of(definition: Definition, known: Mapping[str, Definition]) -> list[Definition]:
    """The definition with those that it builds upon, the last one first; a circle ends where it closes."""
    chain = [definition]
    while following := next((known[base] for base in chain[0].bases if base in known), None):
        if following in chain:
            break
        chain.insert(0, following)
    return chain


def places_of(chain: Sequence[Definition], places: Mapping[str, Path]) -> list[Path]:
    """The files of models that a definition may stand for. `places` are those in the folder of models, in lower case."""
    for base in chain[0].bases:
        if found := [path for place, path in sorted(places.items()) if place == base or place.startswith(f"{base}/")]:
            return found
    return []


class DefinitionReader:
    """Adds what a definition says to the settings of a model, and notes what becomes of each key."""

    def __init__(self, definition: Definition, report: ImportReport, settings: ModelSettings) -> None:
        self._definition = definition
        self._source = definition.source
        self._report = report
        self._settings = settings

    def read(self) -> None:
        """Raises `ImportFailed` where a section is of another kind than it must be."""
        for key in self._source.value:
            if key == "customFields":
                for index in range(len(self._source.items(key))):
                    self._custom_field(index)
            elif key == "config":
                for part in self._source.mapping(key):
                    self._fields(part)
            elif key in _DISPLAYED:
                self._note("meaningless", "is for display: what a model can do is read from its file", key)
            elif key == "suggestions":
                self._note("missing", "settings under conditions are not applied: request.default always holds", key)
            elif key not in ("model", "base"):
                self._note("missing", "Hostler has no such setting", key)

    def _fields(self, part: str) -> None:
        if part not in ("load", "operation"):
            self._note("missing", "Hostler has no such setting", "config", part)
            return
        self._source.mapping("config", part)
        for index, field in enumerate(self._source.items("config", part, "fields")):
            at = ("config", part, "fields", index)
            if not isinstance(field, dict) or not isinstance(key := field.get("key"), str):
                self._note("missing", "a field needs a key, and a value", *at)
                continue
            self._settings.set(key, field.get("value"), self._noted(at, key))

    def _noted(self, at: tuple[str | int, ...], key: str) -> Noted:
        return lambda kind, text: self._about(kind, text, at, key)

    def _custom_field(self, index: int) -> None:
        field = self._source.items("customFields")[index]
        at = ("customFields", index)
        name = field.get("key") if isinstance(field, dict) else None
        if not isinstance(name, str):
            self._note("missing", "a field needs a key", *at)
            return
        for effect in self._source.items(*at, "effects"):
            variable = effect.get("variable") if isinstance(effect, dict) else None
            if isinstance(variable, str) and effect.get("type") == "setJinjaVariable":
                self._settings.declare(name, variable, field.get("defaultValue"))
                text = f"request.default.chat_template_kwargs.{variable}; a client may set it itself"
                self._about("taken", text, at, f"customFields.{name}")
            else:
                text = f"the effect {effect.get('type') if isinstance(effect, dict) else effect!r} is unknown"
                self._about("missing", text, at, f"customFields.{name}")

    def _note(self, kind: NoteKind, text: str, *at: str | int) -> None:
        self._about(kind, text, at, ".".join(map(str, at)))

    def _about(self, kind: NoteKind, text: str, at: tuple[str | int, ...], key: str) -> None:
        self._report.note(kind, self._source.line(*at), key, text, file=str(self._definition.file))
