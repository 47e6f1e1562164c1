"""Translates the store of Ollama: its manifests name the files of each model, which stay where they are. Blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from hostler.gateway.importing.report import FactsOf, Imported, ImportFailed, ImportReport, ProfileNames
from hostler.gateway.importing.request_filters import as_rules
from hostler.gateway.importing.sampling_parameters import request_parameter, whole_number
from hostler.profiles.file_reading import FileTooLarge, read_limited

_MAX_MANIFEST: Final = 1024 * 1024
_MAX_TEXT: Final = 1024 * 1024
_MAX_MODELS: Final = 10_000
_PREFIX: Final = "application/vnd.ollama.image."
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
#: Options that are keys of a profile, with their least value.
_SETTINGS: Final = {"num_ctx": ("context", 1), "num_batch": ("batch", 1), "num_thread": ("threads", 1)}


class _StoredLayer(msgspec.Struct, frozen=True):
    mediaType: str
    digest: str


class _StoredMessage(msgspec.Struct, frozen=True):
    role: str
    content: str = ""


class _StoredManifest(msgspec.Struct, frozen=True):
    layers: tuple[_StoredLayer, ...] = ()


def import_ollama(folder: Path, *, facts_of: FactsOf) -> Imported:
    """The models of a store, the folder with `manifests` and `blobs`, as profiles. Raises `ImportFailed`."""
    if not (folder / "manifests").is_dir() and (folder / "models" / "manifests").is_dir():
        folder = folder / "models"
    if not (folder / "manifests").is_dir():
        raise ImportFailed(f"{folder}: is no store of Ollama: there is no folder manifests in it")
    report = ImportReport(str(folder))
    names = ProfileNames(report)
    for path, name in _manifests(folder / "manifests"):
        _StoredModel(folder, path, name, report, names, facts_of).add()
    if "profiles" not in report.sections:
        report.missing(None, "manifests", "there is no model")
    return report.result()


def _manifests(root: Path) -> Iterator[tuple[Path, str]]:
    """Each manifest, with its model's name as Ollama shows it."""
    found = sorted(path for path in root.glob("*/*/*/*") if path.is_file() and not path.name.startswith("."))
    for path in found[:_MAX_MODELS]:
        registry, namespace, model, tag = path.relative_to(root).parts
        head = "" if registry == "registry.ollama.ai" else f"{registry}/"
        middle = "" if not head and namespace == "library" else f"{namespace}/"
        yield path, f"{head}{middle}{model}:{tag}"


class _StoredModel:
    """One model; notes are about its manifest, which has no lines."""

    def __init__(
        self, folder: Path, path: Path, name: str, report: ImportReport, names: ProfileNames, facts_of: FactsOf
    ) -> None:
        self._folder = folder
        self._path = path
        self._name = name
        self._report = report
        self._names = names
        self._facts_of = facts_of
        self._profile: dict[str, Any] = {}
        self._default: dict[str, Any] = {}
        self._system = ""
        self._examples = ""
        self._has_template = False

    def add(self) -> None:
        try:
            manifest = msgspec.json.decode(read_limited(self._path, _MAX_MANIFEST), type=_StoredManifest)
        except (OSError, FileTooLarge, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._missing("manifest", f"cannot be read: {error}")
            return
        for layer in manifest.layers:
            self._layer(layer)
        if "model" not in self._profile:
            self._missing("model", "has no file here; it may be one of Ollama's cloud")
            return
        facts = self._facts_of(self._profile["model"])
        if facts is None:
            self._missing("model", "its file is no GGUF file that can be read; `ollama pull` fetches it again")
            return
        if facts.capabilities == ("embedding",):
            self._profile["embeddings"] = True
        if self._has_template:
            self._changed("template", "the template of the model's file is used instead of Ollama's")
        if "context" not in self._profile and facts.training_context:
            self._profile["context"] = min(facts.training_context, 8192)
            self._changed("num_ctx", f"is not set; the context is {self._profile['context']} tokens")
        examples = f"An example of a conversation:\n{self._examples}" if self._examples else ""
        system = "\n\n".join(text for text in (self._system, examples) if text)
        rules, _ = as_rules(default=self._default, system=system)
        if rules:
            self._profile["request"] = rules
        name = self._names.claim(None, self._name, self._name)
        self._report.set("profiles", name, value=self._profile)
        self._report.taken(None, self._name, f"the profile {name}", file=str(self._path))

    def _layer(self, layer: _StoredLayer) -> None:
        kind = layer.mediaType.removeprefix(_PREFIX)
        if not _DIGEST.fullmatch(layer.digest):
            self._missing(kind, "its file has no valid name")
            return
        blob = self._folder / "blobs" / layer.digest.replace(":", "-")
        match kind:
            case "model" | "projector" | "adapter" if not blob.is_file():
                self._missing(kind, f"{blob.name} is not there")
            case "model" | "projector":
                key = "model" if kind == "model" else "mmproj"
                if key in self._profile:
                    self._missing(kind, f"a second {key} is not loaded")
                else:
                    self._profile[key] = str(blob)
            case "adapter":
                self._profile.setdefault("args", []).extend(["--lora", str(blob)])
                self._taken(kind, "the argument --lora")
            case "params":
                self._parameters(self._text(blob, kind))
            case "system":
                if text := self._text(blob, kind):
                    self._system = text
                    self._changed(kind, "is added to the system prompt, also where a client has one")
            case "messages":
                self._messages(self._text(blob, kind))
            case "template":
                self._has_template = True
            case "license":
                self._taken(kind, f"is in {blob.name}")
            case _:
                self._missing(kind, "Hostler has no such setting")

    def _messages(self, text: str | None) -> None:
        if text is None:  # it is said why
            return
        try:
            messages = msgspec.json.decode(text, type=tuple[_StoredMessage, ...])
        except msgspec.DecodeError as error:
            self._missing("messages", f"cannot be read: {error}")
            return
        self._examples = "\n".join(f"{each.role}: {each.content}" for each in messages)
        self._changed("messages", "are an example in the system prompt, not a history in front of conversations")

    def _text(self, blob: Path, kind: str) -> str | None:
        try:
            text = read_limited(blob, _MAX_TEXT).decode("utf-8", "replace")
        except (OSError, FileTooLarge) as error:
            self._missing(kind, f"cannot be read: {error}")
            return None
        if "\0" in text:
            self._missing(kind, "is not a text")
            return None
        return text

    def _parameters(self, text: str | None) -> None:
        try:
            values = msgspec.json.decode(text or "{}", type=dict[str, Any])
        except msgspec.DecodeError as error:
            self._missing("params", f"cannot be read: {error}")
            return
        for name, value in values.items():
            if name in _SETTINGS:
                key, least = _SETTINGS[name]
                number = whole_number(value, least)
            elif name == "draft_num_predict" and (number := whole_number(value, 0)) is not None:
                self._profile.setdefault("args", []).extend(["--draft-max", str(number)])
                self._taken(f"params.{name}", "the argument --draft-max")
                continue
            elif name == "num_gpu":
                key, number = "gpu_layers", whole_number(value, 0)
            else:
                member = request_parameter(name, value)
                if member is None:
                    self._missing(f"params.{name}", "Hostler has no such setting")
                else:
                    self._default[member[0]] = member[1]
                    self._taken(f"params.{name}", "request.default")
                continue
            if number is None:
                self._missing(f"params.{name}", "is no valid number")
            else:
                self._profile[key] = number
                self._taken(f"params.{name}", key)

    def _taken(self, key: str, text: str) -> None:
        self._report.taken(None, f"{self._name}: {key}", text, file=str(self._path))

    def _changed(self, key: str, text: str) -> None:
        self._report.changed(None, f"{self._name}: {key}", text, file=str(self._path))

    def _missing(self, key: str, text: str) -> None:
        self._report.missing(None, f"{self._name}: {key}", text, file=str(self._path))
