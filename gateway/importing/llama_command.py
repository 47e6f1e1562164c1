"""A command line of llama-server taken apart into the keys of a profile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

import msgspec

from hostler.gateway.importing.report import FactsOf

_PROGRAM = re.compile(r"llama-server([-._].*)?|server", re.IGNORECASE)

#: Arguments with a value, in all spellings, and what they are in a profile.
_VALUES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("-m", "--model"), "model"),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo"), "repository"),
    **dict.fromkeys(("-hff", "--hf-file"), "repository_file"),
    **dict.fromkeys(("-mu", "--model-url"), "url"),
    **dict.fromkeys(("-mm", "--mmproj"), "mmproj"),
    **dict.fromkeys(("-md", "--model-draft", "--spec-draft-model"), "draft"),
    **dict.fromkeys(("-c", "--ctx-size"), "total_context"),
    **dict.fromkeys(("-np", "--parallel"), "parallel"),
    **dict.fromkeys(("-b", "--batch-size"), "batch"),
    **dict.fromkeys(("-t", "--threads"), "threads"),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), "gpu_layers"),
    **dict.fromkeys(("-cram", "--cache-ram"), "cache_ram_mib"),
    **dict.fromkeys(("-a", "--alias"), "alias"),
    **dict.fromkeys(("--host", "--port", "--api-key", "--api-key-file", "--api-prefix", "--slot-save-path"), "ours"),
}
_FLAGS: Final[Mapping[str, str]] = {
    "--embedding": "embeddings",
    "--embeddings": "embeddings",
    "--reuse-port": "ours",
    "--no-slots": "ours",
}

#: Environment variables that stand for arguments that a profile sets.
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "LLAMA_ARG_HOST": "--host",
    "LLAMA_ARG_PORT": "--port",
    "LLAMA_ARG_MODEL": "--model",
    "LLAMA_ARG_HF_REPO": "--hf-repo",
    "LLAMA_ARG_ALIAS": "--alias",
    "LLAMA_ARG_CTX_SIZE": "--ctx-size",
    "LLAMA_ARG_N_PARALLEL": "--parallel",
    "LLAMA_API_KEY": "--api-key",
}

#: As many tokens is a number of arguments at most.
_LARGEST: Final = 2**31


class LlamaCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What the arguments mean. `profile` has the keys of a profile, `changes` say what is different now, `repository` is
    the one that llama-server downloads its model from, if it is no single file."""

    profile: Mapping[str, Any]
    env: Mapping[str, str]
    changes: tuple[str, ...]
    repository: str = ""


def is_llama_server(program: str) -> bool:
    """Whether this is the program, with or without a folder and a version."""
    name = PureWindowsPath(program).name if "\\" in program else PurePosixPath(program).name
    return _PROGRAM.fullmatch(name.removesuffix(".exe")) is not None


def read_arguments(
    words: Sequence[str], env: Mapping[str, str], *, path_of: Callable[[str], str], facts_of: FactsOf
) -> LlamaCommand:
    """The arguments after the program as a profile. `path_of` gives the whole path of a relative one."""
    from_env = [word for name, flag in _ENVIRONMENT.items() if name in env for word in (flag, env[name])]
    reader = _ArgumentReader(path_of, facts_of)
    for flag, value in _pairs([*from_env, *words]):
        reader.read(flag, value)
    return reader.command({name: value for name, value in env.items() if name not in _ENVIRONMENT})


def without_ours(words: Sequence[str]) -> list[str]:
    """The arguments without those that the supervisor sets."""
    kept: list[str] = []
    for flag, value in _pairs(words):
        if (_FLAGS.get(flag) if value is None else _VALUES[flag]) != "ours":
            kept += [flag] if value is None else [flag, value]
    return kept


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each argument that a profile knows with its value; others as they are, word by word."""
    position = 0
    while position < len(words):
        word = words[position]
        name = word.replace("_", "-") if word.startswith("--") else word
        flag, equals, _ = name.partition("=")
        if flag in _VALUES and equals:
            yield flag, word.partition("=")[2]
        elif name in _VALUES and position + 1 < len(words):
            position += 1
            yield name, words[position]
        else:
            yield (name if name in _FLAGS else word), None
        position += 1


class _ArgumentReader:
    def __init__(self, path_of: Callable[[str], str], facts_of: FactsOf) -> None:
        self._path_of = path_of
        self._facts_of = facts_of
        self._found: dict[str, str] = {}
        self._args: list[str] = []
        self._changes: list[str] = []
        self._embeddings = False

    def read(self, flag: str, value: str | None) -> None:
        if value is None:
            if _FLAGS.get(flag) == "embeddings":
                self._embeddings = True
            elif flag in _FLAGS:
                self._changes.append(f"{flag} is left out: the supervisor sets it")
            else:
                self._args.append(flag)
        elif _VALUES[flag] == "ours":
            self._changes.append(f"{flag} is left out: the supervisor sets it")
        else:
            self._found[_VALUES[flag]] = value

    def command(self, env: Mapping[str, str]) -> LlamaCommand:
        profile: dict[str, Any] = {}
        repository = self._source(profile)
        for key in ("mmproj", "draft"):
            if key in self._found:
                profile[key] = self._path_of(self._found[key])
        if "alias" in self._found:
            profile["aliases"] = [each.strip() for each in self._found["alias"].split(",") if each.strip()]
        facts = self._facts_of(profile["model"]) if "model" in profile else None
        if self._embeddings or (facts is not None and facts.capabilities == ("embedding",)):
            profile["embeddings"] = True
        self._sizes(profile, 0 if facts is None else facts.training_context)
        for key, least in (("batch", 1), ("threads", 1), ("cache_ram_mib", -1)):
            self._number(profile, key, least)
        self._layers(profile)
        if self._args:
            profile["args"] = self._args
        return LlamaCommand(profile=profile, env=env, changes=tuple(self._changes), repository=repository)

    def _source(self, profile: dict[str, Any]) -> str:
        """Sets the model; returns the repository that llama-server has to choose a file of."""
        repository, file = self._found.get("repository", ""), self._found.get("repository_file", "")
        if "model" in self._found:
            profile["model"] = self._path_of(self._found["model"])
        elif repository and file.endswith(".gguf"):
            profile["model"] = f"hf:{repository.partition(':')[0]}/{file}"
        elif "url" in self._found:
            self._changes.append("--model-url needs the file's checksum here: add sha256 to the profile")
            profile["model"] = self._found["url"]
        return repository if "model" not in profile else ""

    def _sizes(self, profile: dict[str, Any], trained: int) -> None:
        """llama-server shares its context between conversations, a profile names that of one."""
        parallel = self._integer("parallel")
        if parallel is not None and parallel > 0:
            profile["parallel"] = parallel
        total = self._integer("total_context") or trained
        if total <= 0:
            self._changes.append("the context is that of the model file, which is not here: set context, or it is 4096")
            return
        share = max(1, parallel or 1)
        profile["context"] = max(1, total // share)
        if share > 1:
            self._changes.append(f"{total} tokens of context for {share} conversations are {total // share} for each")
        elif "total_context" not in self._found or self._integer("total_context") in (0, None):
            self._changes.append(f"the context is {total} tokens, as the model file says")

    def _number(self, profile: dict[str, Any], key: str, least: int) -> None:
        if (number := self._integer(key)) is not None:
            if number >= least:
                profile[key] = number
            elif key != "threads":  # -1: as many as there are cores, which is the default here as well
                self._changes.append(f"{key} of {number} is left out: it is less than {least}")

    def _layers(self, profile: dict[str, Any]) -> None:
        text = self._found.get("gpu_layers")
        if text in ("all", "auto"):
            profile["gpu_layers"] = text
        elif (number := self._integer("gpu_layers")) is not None:
            profile["gpu_layers"] = number if number >= 0 else {-1: "auto"}.get(number, "all")

    def _integer(self, key: str) -> int | None:
        text = self._found.get(key)
        if text is None or (key == "gpu_layers" and text in ("all", "auto")):
            return None
        if re.fullmatch(r"-?\d{1,12}", text) and abs(int(text)) <= _LARGEST:
            return int(text)
        note = f"{key}: {text[:40]!r} is no number, and left out"
        if note not in self._changes:
            self._changes.append(note)
        return None
