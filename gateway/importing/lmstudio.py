"""Translates LM Studio's folder: its models, which stay where they are, and their settings. Blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from hostler.gateway.importing.report import Imported, ImportFailed, ImportReport
from hostler.gateway.importing.request_filters import as_rules
from hostler.gateway.importing.sampling_parameters import whole_number
from hostler.profiles.file_reading import FileTooLarge, read_limited
from hostler.profiles.model_scan import FoundModel, profile_names, scan_models

_MAX_SETTINGS: Final = 1024 * 1024
_SETTINGS_FOLDER: Final = Path(".internal/user-concrete-model-default-config")

#: Settings that are a whole number, with their key in a profile and the least value.
_NUMBERS: Final[Mapping[str, tuple[str, int]]] = {
    "llm.load.contextLength": ("context", 1),
    "embedding.load.contextLength": ("context", 1),
    "llm.load.llama.evalBatchSize": ("batch", 1),
    "embedding.load.llama.evalBatchSize": ("batch", 1),
    "llm.load.llama.cpuThreadPoolSize": ("threads", 1),
    "llm.load.numParallelSessions": ("parallel", 1),
}
#: Settings that are an argument with a value.
_ARGUMENTS: Final[Mapping[str, str]] = {
    "llm.load.llama.physicalBatchSize": "--ubatch-size",
    "llm.load.llama.kCacheQuantizationType": "--cache-type-k",
    "llm.load.llama.vCacheQuantizationType": "--cache-type-v",
    "llm.load.llama.ropeFrequencyBase": "--rope-freq-base",
    "llm.load.llama.ropeFrequencyScale": "--rope-freq-scale",
    "llm.load.seed": "--seed",
}
#: Settings that are an argument if they are true, and one if they are false.
_SWITCHES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "llm.load.llama.flashAttention": (("--flash-attn", "on"), ("--flash-attn", "off")),
    "llm.load.offloadKVCacheToGpu": ((), ("--no-kv-offload",)),
    "llm.load.useUnifiedKvCache": (("--kv-unified",), ()),
    "llm.load.llama.tryMmap": ((), ("--no-mmap",)),
    "llm.load.llama.keepModelInMemory": (("--mlock",), ()),
}
#: Settings of predictions, and the members of requests.
_SAMPLING: Final[Mapping[str, str]] = {
    "llm.prediction.temperature": "temperature",
    "llm.prediction.topKSampling": "top_k",
    "llm.prediction.topPSampling": "top_p",
    "llm.prediction.minPSampling": "min_p",
    "llm.prediction.repeatPenalty": "repeat_penalty",
    "llm.prediction.llama.presencePenalty": "presence_penalty",
    "llm.prediction.llama.frequencyPenalty": "frequency_penalty",
    "llm.prediction.maxPredictedTokens": "max_tokens",
    "llm.prediction.stopStrings": "stop",
}


class _Field(msgspec.Struct, frozen=True):
    key: str
    value: Any = None


class _Fields(msgspec.Struct, frozen=True):
    fields: tuple[_Field, ...] = ()


class _ModelSettings(msgspec.Struct, frozen=True):
    load: _Fields = _Fields()
    operation: _Fields = _Fields()
    fields: tuple[_Field, ...] = ()


class _AppSettings(msgspec.Struct, frozen=True):
    downloadsFolder: str = ""


def import_lmstudio(folder: Path) -> Imported:
    """The models of LM Studio's folder, `~/.lmstudio`, or of its folder of models. Raises `ImportFailed`."""
    models = _models_folder(folder)
    report = ImportReport(str(folder))
    scan = scan_models([models])
    names = profile_names([found.path for found in scan.models if not found.is_folder])
    for found in scan.models:
        place = found.path.relative_to(models) if found.path.is_relative_to(models) else Path(found.path.name)
        if found.is_folder:
            report.missing(None, str(place), "is no GGUF file; MLX and safetensors need an engine of their own")
            continue
        profile = _profile(found)
        settings = folder / _SETTINGS_FOLDER / f"{place}.json"
        if settings.is_file():
            _SettingsReader(settings, report, profile).read()
        name = names[found.path]
        report.set("profiles", name, value=profile)
        report.taken(None, str(place), f"the profile {name}")
    for each in scan.left_out:
        report.missing(None, str(each.path), each.reason)
    if not scan.models:
        report.missing(None, str(models), "there is no model")
    return report.result()


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
            return candidate.resolve()
    return folder.resolve()


def _profile(found: FoundModel) -> dict[str, Any]:
    profile: dict[str, Any] = {"model": str(found.path)}
    if found.projector is not None:
        profile["mmproj"] = str(found.projector)
    if found.kind == "embeddings":
        profile["embeddings"] = True
    if found.kind == "rerank":
        profile["args"] = ["--reranking"]
    return profile


class _SettingsReader:
    """Adds the settings of one model to its profile."""

    def __init__(self, path: Path, report: ImportReport, profile: dict[str, Any]) -> None:
        self._path = path
        self._report = report
        self._profile = profile
        self._default: dict[str, Any] = {}
        self._system = ""
        self._text = ""

    def read(self) -> None:
        try:
            content = read_limited(self._path, _MAX_SETTINGS)
            self._text = content.decode("utf-8-sig")
            if "\0" in self._text or "\\u0000" in self._text:
                raise ValueError("is not a text file")
            settings = msgspec.json.decode(self._text, type=_ModelSettings)
        except (OSError, FileTooLarge, msgspec.DecodeError, ValueError) as error:
            self._report.missing(None, "settings", f"cannot be read: {error}", file=str(self._path))
            return
        for field in (*settings.load.fields, *settings.operation.fields, *settings.fields):
            self._field(field.key, _checked(field.value))
        rules, _ = as_rules(default=self._default, system=self._system)
        if rules:
            self._profile["request"] = rules

    def _field(self, key: str, value: Any) -> None:
        if value is None:
            self._note("taken", key, "is switched off")
        elif key in _NUMBERS:
            name, least = _NUMBERS[key]
            number = whole_number(value, least)
            if number is None:
                self._note("missing", key, "is no valid number")
            else:
                self._profile[name] = number
                self._note("taken", key, name)
        elif key in _SWITCHES and isinstance(value, bool):
            self._arguments(_SWITCHES[key][0 if value else 1])
            self._note("taken", key)
        elif key in _ARGUMENTS and isinstance(value, str | int | float):
            self._arguments((_ARGUMENTS[key], str(value)))
            self._note("taken", key, _ARGUMENTS[key])
        elif key in _SAMPLING and isinstance(value, str | int | float | list):
            if value not in ("", []):
                self._default[_SAMPLING[key]] = value
            self._note("taken", key, "request.default")
        elif key == "llm.prediction.systemPrompt" and isinstance(value, str):
            self._system = value
            self._note("changed", key, "is added to the system prompt, also where a client has one")
        elif key.endswith("acceleration.offloadRatio"):
            self._offload(key, value)
        else:
            self._note("missing", key, "Hostler has no such setting")

    def _offload(self, key: str, value: Any) -> None:
        if value == "max" or (isinstance(value, int | float) and value >= 1):
            self._profile["gpu_layers"] = "all"
        elif value in ("off", 0):
            self._profile["gpu_layers"] = 0
        else:
            self._note("changed", key, "a share of the layers: as many as fit are chosen")
            self._profile["gpu_layers"] = "auto"
            return
        self._note("taken", key, "gpu_layers")

    def _arguments(self, words: tuple[str, ...]) -> None:
        if words:
            self._profile.setdefault("args", []).extend(words)

    def _note(self, kind: str, key: str, text: str = "") -> None:
        add = {"taken": self._report.taken, "changed": self._report.changed, "missing": self._report.missing}[kind]
        at = self._text.find(f'"{key}"')
        add(self._text.count("\n", 0, at) + 1 if at >= 0 else None, key, text, file=str(self._path))


def _checked(value: Any) -> Any:
    """The value of a setting with a check mark, `None` if it is not marked."""
    if isinstance(value, dict) and "checked" in value:
        return value.get("value") if value["checked"] is True else None
    return value
