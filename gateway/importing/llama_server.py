"""Translates the presets of llama-server, an INI file with a section for each model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.importing.llama_command import read_arguments, without_ours
from hostler.gateway.importing.report import (
    FactsOf,
    Imported,
    ImportFailed,
    ImportReport,
    NoteKind,
    ProfileNames,
    as_template,
    plain_name,
)
from hostler.profiles.templates import variables

_MAX_LINES: Final = 50_000
#: The section of settings for all models.
_ALL: Final = "*"
_ON: Final = frozenset({"true", "1", "on", "enabled", "yes"})
_OFF: Final = frozenset({"false", "0", "off", "disabled", "no"})
#: Options without a value, which a preset sets to true or false.
_FLAGS: Final = frozenset(
    {
        *("jinja", "embedding", "embeddings", "rerank", "reranking", "mmap", "mlock", "kv-unified", "kvu", "metrics"),
        *("cont-batching", "context-shift", "warmup", "swa-full", "kv-offload", "perf", "webui", "slots", "props"),
        *("verbose", "spec-default", "op-offload", "repack", "mmproj-offload", "prefill-assistant", "direct-io"),
        *("cpu-moe", "no-mmap", "no-jinja", "no-warmup", "no-context-shift", "no-kv-offload", "no-mmproj", "no-webui"),
        *("check-tensors", "escape", "ignore-eos", "special", "no-repack", "no-slots", "reasoning-preserve"),
    }
)
_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


_Note = tuple[NoteKind, int, str, str]


class IniValue(msgspec.Struct, frozen=True):
    """A value with its line."""

    text: str
    line: int


def read_ini(text: str, name: str) -> dict[str, dict[str, IniValue]]:
    """The sections; keys before the first one are in the section of no name. Raises `ImportFailed`."""
    if "\0" in text:
        raise ImportFailed(f"{name}: is not a text file")
    lines = text.splitlines()
    if len(lines) > _MAX_LINES:
        raise ImportFailed(f"{name}: more than {_MAX_LINES} lines")
    sections: dict[str, dict[str, IniValue]] = {"": {}}
    current = sections[""]
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line or line[0] in ";#":
            continue
        if line.startswith("["):
            if not line.endswith("]") or not line[1:-1].strip():
                raise ImportFailed(f"{name}:{number}: a section has the form [name]")
            current = sections.setdefault(line[1:-1].strip(), {})
            continue
        key, equals, value = line.partition("=")
        if not equals or not _KEY.fullmatch(key.strip()):
            raise ImportFailed(f"{name}:{number}: expected key = value")
        current[key.strip()] = IniValue(_unquoted(value.strip()), number)
    return sections


def import_llama_server(
    text: str, name: str, *, prefix: str, path_of: Callable[[str], str], facts_of: FactsOf
) -> Imported:
    """The presets as profiles. `path_of` gives the whole path of a relative one. Raises `ImportFailed`."""
    report = ImportReport(name, prefix)
    sections = read_ini(text, name)
    shared = sections.pop(_ALL, {})
    for key, value in sections.pop("", {}).items():
        if key == "version":
            report.taken(value.line, key)
        else:
            report.missing(value.line, key, "belongs to no model")
    names = ProfileNames(report)
    presets = _Presets(report, path_of, facts_of)
    for section, own in sections.items():
        line = min((value.line for value in own.values()), default=2) - 1
        profile_name = names.claim(line, f"[{section}]", section)
        presets.add(section, profile_name, own, shared)
    for key, value in shared.items():
        if sections and all(key in own for own in sections.values()):
            report.taken(value.line, f"[{_ALL}].{key}", "each section has its own")
    if not sections:
        report.missing(None, "[...]", "there is no section of a model")
    return report.result()


class _Presets:
    """Adds presets to the report's profiles and engines."""

    def __init__(self, report: ImportReport, path_of: Callable[[str], str], facts_of: FactsOf) -> None:
        self._report = report
        self._path_of = path_of
        self._facts_of = facts_of

    def add(self, section: str, name: str, own: Mapping[str, IniValue], shared: Mapping[str, IniValue]) -> None:
        """Add a preset as the profile `name`, with what all sections share; one that cannot be translated is noted."""
        values = {key: (_ALL, value) for key, value in shared.items()}
        values |= {key: (section, value) for key, value in own.items()}
        profile: dict[str, Any] = {}
        env: dict[str, str] = {}
        words, notes = _read(values, profile, env)
        line = min((value.line for value in own.values()), default=None)
        if unknown := variables((*words, *env.values())):
            text = f"${{{min(unknown)}}} would be a variable of a command here; the preset is not taken over"
            self._report.missing(line, f"[{section}]", text)
            return
        command = read_arguments(words, env, path_of=self._path_of, facts_of=self._facts_of)
        repository = command.repository or _repository(section)
        if "model" not in command.profile and not repository:
            text = "names no model: add `model = FILE` or `hf = ORG/REPO`; the preset is not taken over"
            self._report.missing(line, f"[{section}]", text)
            return
        for note in notes:
            self._report.note(*note)
        for change in command.changes:
            self._report.changed(line, f"[{section}]", change)
        if command.env:
            profile["env"] = dict(command.env)
        if "model" in command.profile:
            self._report.set("profiles", name, value={**command.profile, **profile})
        else:
            engine = self._repository_engine(name, repository, words)
            self._report.set("profiles", name, value={"engine": engine, **profile})
            text = f"llama-server downloads {repository} itself; `hostler get {repository}` makes it a profile"
            self._report.changed(line, f"[{section}]", text)

    def _repository_engine(self, name: str, repository: str, words: list[str]) -> str:
        """An engine of this profile's own, in which llama-server chooses the file of a repository itself."""
        words = without_ours(words)
        if not {"-hf", "-hfr", "--hf-repo"} & {*words}:
            words = ["-hf", repository, *words]
        engine = re.sub(r"[/:@]", "-", plain_name(name))
        engine = f"{engine}-imported" if engine == "llama-server" else engine
        address = ["--host", as_template("${host}"), "--port", as_template("${port}")]
        value: dict[str, Any] = {"command": ["llama-server", *words, *address], "protocol": "openai", "key": "none"}
        self._report.set("engines", engine, value={**value, "ready": "/health"})
        return engine


def _read(
    values: Mapping[str, tuple[str, IniValue]], profile: dict[str, Any], env: dict[str, str]
) -> tuple[list[str], list[_Note]]:
    """The words of the command line for values with their sections, and notes; adds to `profile` and `env` what is none."""
    words: list[str] = []
    notes: list[_Note] = []
    for key, (section, value) in values.items():
        kind: NoteKind = "taken"
        text = ""
        if key == "load-on-startup":
            profile["preload"], text = value.text.lower() in _ON, "preload"
        elif key == "dedup-cache-models":
            kind, text = "meaningless", "models are those of the file, without those of a cache"
        elif key == "stop-timeout" and re.fullmatch(r"\d{1,6}", value.text):
            profile["stop_grace_s"], text = float(value.text), "stop_grace_s"
        elif key == "stop-timeout":
            kind, text = "missing", "is no number of seconds"
        elif key.startswith("LLAMA_"):
            words += _option(key.removeprefix("LLAMA_ARG_").lower().replace("_", "-"), value.text, env, key)
        else:
            words += _option(key, value.text, env, "")
        notes.append((kind, value.line, f"[{section}].{key}", text))
    return words, notes


def _repository(section: str) -> str:
    """The repository that a section is named for; empty if it is another name."""
    return section if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", section) else ""


def _option(key: str, text: str, env: dict[str, str], variable: str) -> list[str]:
    """The words of the command line that an entry of a preset stands for."""
    if variable and not variable.startswith("LLAMA_ARG_"):
        env[variable] = text
        return []
    key = {"hf": "hf-repo", "n-parallel": "parallel", "model-alias": "alias"}.get(key, key)
    dashes = "-" if len(key.split("-")[0]) <= 3 and key in _SHORT else "--"
    lowered = text.lower()
    if key in _FLAGS and lowered in _ON | _OFF:
        if lowered in _ON:
            return [dashes + key]
        return [f"--{key[3:]}" if key.startswith("no-") else f"--no-{key}"] if key not in _WITHOUT_OPPOSITE else []
    if lowered in ("true", "false") and key not in ("flash-attn", "fa"):
        return [dashes + key] if lowered == "true" else []
    return [dashes + key, text]


#: Options with a single dash.
_SHORT: Final = frozenset(
    {
        *("m", "c", "b", "ub", "t", "tb", "np", "ngl", "hf", "hfr", "hff", "mu", "a", "md", "mm", "fa", "ctk", "ctv"),
        *("ts", "sm", "mg", "ot", "kvu", "cb", "nkvo", "cram", "s", "n", "l", "j", "jf", "ncmoe", "cmoe", "ngld", "cd"),
        *("ctkd", "ctvd", "otd", "devd", "dev", "lcs", "sps", "to"),
    }
)
_WITHOUT_OPPOSITE: Final = frozenset(
    {"embedding", "embeddings", "rerank", "reranking", "mlock", "metrics", "swa-full", "verbose", "spec-default"}
)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
