"""Profiles: named ways to run a model, as written in a file and resolved. Values only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hostler.profiles.engines import Engine, EngineTable, check_variables
from hostler.profiles.request_rules import RequestRules
from hostler.profiles.sources import ModelSource, SourceError, is_hub_name
from hostler.profiles.templates import TemplateError, apply_macros, apply_macros_to_text
from hostler.profiles.yaml_config import Size

#: Compressed; `gguf.tensors` unpacks it.
Packed = bytes


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from the header of a GGUF file, or what is known without one.

    `parameters` is the number of weights, `training_context` the tokens it was trained on, `metadata` all keys of
    the header with arrays replaced by `None` (they are large), `bytes` the size of all shards together. `declared`: the
    capabilities are what an engine is said to serve, and its model may have others.
    """

    architecture: str = ""
    name: str = ""
    parameters: int = 0
    quantization: str = "unknown"
    training_context: int = 0
    embedding_length: int = 0
    blocks: int = 0
    chat_template: str = ""
    capabilities: tuple[str, ...] = ("completion",)
    metadata: Mapping[str, str | int | float | bool | None] = {}
    bytes: int = 0
    kv_bytes_per_token: int = 0
    sliding_window: int = 0
    recurrent: bool = False
    declared: bool = False
    tensors: Packed = b""


#: What a waiting client sees: progress as reasoning, empty chunks, comments, or nothing.
ProgressMode = Literal["thinking", "quiet", "comments", "off"]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named way to run a model, with inheritance resolved and defaults filled in.

    `model` is a path, `hf:org/repo/file.gguf`, `https://...` with `sha256`, `pypi:package==version/file.gguf`,
    `hub:org/repo` for an engine that loads it itself, or empty for an engine without models. `definition` is the engine
    that `engine` names; without one, `engine` is a command line of llama-server.
    Times are in seconds, `memory` in bytes. `ttl_s` of `None` never unloads. `chain` names the gateway's backends that
    may serve it, in order, instead of the general chain; `local_only` keeps its requests off cloud backends. `devices`
    are the GPUs it is split over; `None`: all, an empty list: none. `preload` starts it with the supervisor without
    pinning it. `evict_cost` is in seconds, `None`: those of a load. `priority` is added to that of its requests. `max_concurrent` is how many requests its engine gets
    at a time (`None`: `parallel`), `max_waiting` how many may queue for it. `request` changes its
    requests. `metadata` are further values in OpenAI's list of models, `progress` what its waiting clients see.
    """

    name: str
    model: str
    sha256: str | None = None
    mmproj: str | None = None
    draft: str | None = None
    aliases: tuple[str, ...] = ()
    description: str = ""
    context: int = 4096
    parallel: int = 1
    batch: int = 512
    threads: int | None = None
    gpu_layers: int | str | None = None
    cache_ram_mib: int = 0
    embeddings: bool = False
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    ttl_s: float | None = None
    start_timeout_s: float | None = None
    drain_s: float | None = None
    stop_grace_s: float | None = None
    memory: int | None = None
    devices: tuple[str, ...] | None = None
    pinned: bool = False
    preload: bool = False
    evict_cost: float | None = None
    priority: int = 0
    max_concurrent: int | None = None
    max_waiting: int | None = None
    first_byte_s: float | None = None
    between_bytes_s: float | None = None
    max_answer_s: float | None = None
    metadata: Mapping[str, Any] = {}
    progress: ProgressMode | None = None
    listed: bool = True
    default: bool = False
    engine: str | None = None
    definition: Engine | None = None
    chain: tuple[str, ...] | None = None
    local_only: bool = False
    request: RequestRules | None = None


#: The highest priority of a model, and of a key; the lowest is its negative.
_MAX_PRIORITY: Final = 1_000_000


class ProfileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile as written in a file. What is left out comes from `base`, else from the defaults of `Profile`.

    A key that is given replaces the base's value, lists and mappings too. `aliases`, `description` and `default` are
    never inherited, nor is `sha256` by a profile with a `model` of its own.
    """

    model: str | UnsetType = UNSET
    """The model: a file, for some engines a folder or a name, in one of these forms. Required unless `base` is set, or
    the engine takes none."""
    base: str | UnsetType = UNSET
    """A profile to inherit every key from that is not set here, except `aliases`, `description` and `default`."""
    sha256: str | UnsetType | None = UNSET
    """SHA-256 of the file, 64 hexadecimal digits. Required for web addresses."""
    mmproj: str | UnsetType | None = UNSET
    """Projector file of a model that reads images or sound."""
    draft: str | UnsetType | None = UNSET
    """Draft model for speculative decoding, which answers faster with the same result."""
    aliases: tuple[str, ...] | UnsetType = UNSET
    """Other names for the model."""
    description: str | UnsetType = UNSET
    """Description of the model in lists of models."""
    context: int | UnsetType = UNSET
    """Context length per conversation."""
    parallel: int | UnsetType = UNSET
    """Conversations served at the same time, each with the full context."""
    batch: int | UnsetType = UNSET
    """Prompt tokens processed at once. With `embeddings` this limits the length of a text and is at least the context,
    or 2048 if that is less."""
    threads: int | UnsetType | None = UNSET
    """CPU threads. Default: chosen by the engine."""
    gpu_layers: int | Literal["all", "auto"] | UnsetType | None = UNSET
    """Layers to run on the GPU. Default: chosen by the engine."""
    cache_ram_mib: int | UnsetType = UNSET
    """Memory for cached prompts; `0` means none, `-1` unlimited."""
    embeddings: bool | UnsetType = UNSET
    """Serve embeddings instead of chat. Works with any model; one whose file names no pooling uses the mean over the
    text, unless `args` set another (`[--pooling, last]`)."""
    args: tuple[str, ...] | UnsetType = UNSET
    """Further arguments of the engine, with `~`, variables and macros. Those of `llama-server` that have a key of their
    own, or that the supervisor sets, are rejected."""
    env: Mapping[str, str] | UnsetType = UNSET
    """Environment variables of the engine."""
    ttl_s: float | UnsetType | None = UNSET
    """Idle time after which the model is unloaded. Default: never."""
    start_timeout_s: float | UnsetType | None = UNSET
    """Overrides `supervisor.start_timeout_s` for this model."""
    drain_s: float | UnsetType | None = UNSET
    """Overrides `supervisor.drain_s` for this model."""
    stop_grace_s: float | UnsetType | None = UNSET
    """Overrides `supervisor.stop_grace_s` for this model."""
    memory: Size | UnsetType | None = UNSET
    """Memory the model needs, for the budgets. Default: estimated from the file."""
    devices: tuple[str, ...] | UnsetType | None = UNSET
    """GPUs that the engine sees; it is split over several. An empty list: none. Default: all."""
    pinned: bool | UnsetType = UNSET
    """Start with the supervisor, restart after a crash, and never evict. Operators can override this at run time."""
    preload: bool | UnsetType = UNSET
    """Load the model when the supervisor starts, unless another one would have to be unloaded for it. Unlike a pinned
    one it may be evicted."""
    evict_cost: float | UnsetType | None = UNSET
    """What unloading it counts when one of several `supervisor.sets` is chosen. Default: the time its last loads took.
    """
    priority: Annotated[int, msgspec.Meta(ge=-_MAX_PRIORITY, le=_MAX_PRIORITY)] | UnsetType = UNSET
    """Added to the priority of every request for this model: waiting requests with a higher one are served first."""
    max_concurrent: int | UnsetType | None = UNSET
    """Requests that the engine gets at a time, for engines that queue or batch by themselves. Default: `parallel`."""
    max_waiting: int | UnsetType | None = UNSET
    """Requests that may wait for this model, within `gateway.queue.max_waiting`. Further ones are refused with status
    429."""
    first_byte_s: float | UnsetType | None = UNSET
    """Overrides `gateway.timeouts.first_byte_s` for this model."""
    between_bytes_s: float | UnsetType | None = UNSET
    """Overrides `gateway.timeouts.between_bytes_s` for this model."""
    max_answer_s: float | UnsetType | None = UNSET
    """Time that one answer may take from its start to its end; then it is cut off with status 504, so that a model that
    never stops cannot keep others out. Default: no limit."""
    metadata: Mapping[str, Any] | UnsetType = UNSET
    """Further values for the model's entry in OpenAI's list of models, under the key `metadata`."""
    progress: ProgressMode | UnsetType | None = UNSET
    """Overrides `gateway.switching.progress` and `progress_for` for this model."""
    listed: bool | UnsetType = UNSET
    """List the model to clients; it can be used either way."""
    default: bool | UnsetType = UNSET
    """Serve requests that name no model while none is running. At most one profile."""
    engine: str | UnsetType | None = UNSET
    """Overrides `supervisor.engine`: a name of `engines`, a preset, or a command line of `llama-server`."""
    chain: tuple[str, ...] | UnsetType | None = UNSET
    """Backends that may serve the model, in order, instead of `gateway.chain`."""
    local_only: bool | UnsetType = UNSET
    """Use local backends only (`backends.NAME.local`), so that no prompt leaves the local network."""
    request: RequestRules | UnsetType | None = UNSET
    """Changes of all requests to this model."""


class ProfileError(Exception):
    """An invalid profile: `profile` and `key` say where, `message` why and what to do instead."""

    def __init__(self, profile: str, key: str | None, message: str) -> None:
        super().__init__(profile, key, message)
        self.profile = profile
        self.key = key
        self.message = message

    def __str__(self) -> str:
        place = f"profiles.{self.profile}" + (f".{self.key}" if self.key else "")
        return f"{place}: {self.message}"


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@-]{0,127}(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,79})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEVICE = re.compile(r"gpu(0|[1-9][0-9]?)")
#: Profiles between one and the last of its bases, at most: all are looked up for each profile.
MAX_BASES = 32

_NOT_INHERITED = ("base", "aliases", "description", "default")

# Set by the supervisor for every engine, and the profile key to use instead (None: there is none).
_FLAGS: Mapping[str, str | None] = {
    "--host": None,
    "--port": None,
    "--reuse-port": None,
    "--api-key": None,
    "--api-key-file": None,
    "--api-prefix": None,
    "--slot-save-path": None,
    "--no-slots": None,
    "--alias": "aliases",
    "-a": "aliases",
    **dict.fromkeys(("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), "model"),
    **dict.fromkeys(("-c", "--ctx-size"), "context"),
    **dict.fromkeys(("-np", "--parallel"), "parallel"),
    **dict.fromkeys(("-b", "--batch-size"), "batch"),
    **dict.fromkeys(("-t", "--threads"), "threads"),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), "gpu_layers"),
    **dict.fromkeys(("-cram", "--cache-ram"), "cache_ram_mib"),
    **dict.fromkeys(("--embedding", "--embeddings"), "embeddings"),
}
_VARIABLES: Mapping[str, str | None] = {
    "LLAMA_API_KEY": None,
    "LLAMA_ARG_HOST": None,
    "LLAMA_ARG_PORT": None,
    "LLAMA_ARG_MODEL": "model",
    "LLAMA_ARG_HF_REPO": "model",
    "LLAMA_ARG_ALIAS": "aliases",
    "LLAMA_ARG_CTX_SIZE": "context",
    "LLAMA_ARG_N_PARALLEL": "parallel",
}
_MINIMUM: Mapping[str, float] = {
    "context": 1,
    "parallel": 1,
    "batch": 1,
    "threads": 1,
    "gpu_layers": 0,
    "cache_ram_mib": -1,
    "ttl_s": 0,
    "start_timeout_s": 0.1,
    "drain_s": 0,
    "stop_grace_s": 0,
    "evict_cost": 0,
    "max_concurrent": 1,
    "max_waiting": 1,
    "first_byte_s": 0.1,
    "between_bytes_s": 0.1,
    "max_answer_s": 0.1,
}


def is_device_name(name: str) -> bool:
    """Whether it can be the name of a GPU: `gpu0`, `gpu1` and so on."""
    return _DEVICE.fullmatch(name) is not None


_NO_ENGINES = EngineTable()


def name_key(name: str) -> str:
    """The form in which names are compared: without regard to case or Ollama's `:latest`."""
    return name.lower().removesuffix(":latest")


def resolve(
    entries: Mapping[str, ProfileEntry], errors: list[ProfileError] | None = None, engines: EngineTable | None = None
) -> tuple[Profile, ...]:
    """The complete profiles, in the order of `entries`. Raises `ProfileError` for the first invalid one.

    With `errors`, invalid profiles are left out and added to it instead, each with its first error.
    """
    found: list[ProfileError] = []
    profiles: list[Profile] = []
    for name in entries:
        try:
            profile = _complete(name, entries, engines or _NO_ENGINES)
            _check(profile)
            profiles.append(profile)
        except ProfileError as error:
            found.append(error)
    found += _name_errors(profiles)
    defaults = [profile.name for profile in profiles if profile.default]
    found += [
        ProfileError(name, "default", f"{defaults[0]} is already the default; only one profile can be")
        for name in defaults[1:]
    ]
    if errors is None and found:
        raise found[0]
    if errors is not None:
        errors += found
    invalid = {error.profile for error in found}
    return tuple(profile for profile in profiles if profile.name not in invalid)


def _complete(name: str, entries: Mapping[str, ProfileEntry], engines: EngineTable) -> Profile:
    given: dict[str, Any] = {}
    for level, ancestor in enumerate(_ancestry(name, entries)):
        entry = entries[ancestor]
        own = {key: value for key in entry.__struct_fields__ if (value := getattr(entry, key)) is not UNSET}
        if "model" in given:
            own.pop("sha256", None)
        for key, value in own.items():
            if key not in given and key != "base" and (level == 0 or key not in _NOT_INHERITED):
                given[key] = value
    engine = given["definition"] = engines.find(given.get("engine"))
    if "model" not in given:
        if engine is None or engine.needs_model:
            raise ProfileError(name, None, "needs model: (the file to run) or base: (a profile to inherit from)")
        given["model"] = ""
    if given.get("memory") is not None:
        given["memory"] = int(given["memory"])  # sent as JSON, which has no `Size`
    return _with_macros(Profile(name=name, **given), engines)


def _with_macros(profile: Profile, engines: EngineTable) -> Profile:
    """The profile with macros replaced. The engine's variables stay, and must exist."""
    macros = engines.macros_of(profile.engine)
    changes: dict[str, Any] = {}
    key = ""
    try:
        for key in ("model", "mmproj", "draft"):
            text = getattr(profile, key)
            if text is not None and "${" in text:
                changes[key] = apply_macros_to_text(text, macros)
        key = "args"
        if any("${" in word for word in profile.args):
            changes["args"] = apply_macros(profile.args, macros)
            check_variables(changes["args"])
        key = "env"
        if any("${" in text for text in profile.env.values()):
            changes["env"] = {name: apply_macros_to_text(text, macros) for name, text in profile.env.items()}
            check_variables((*changes["env"].values(),))
    except TemplateError as error:
        raise ProfileError(profile.name, key, str(error)) from None
    return msgspec.structs.replace(profile, **changes) if changes else profile


def _ancestry(name: str, entries: Mapping[str, ProfileEntry]) -> list[str]:
    """The profile, its base, the base's base and so on."""
    ancestry = [name]
    while (base := entries[ancestry[-1]].base) is not UNSET:
        if base not in entries:
            raise ProfileError(ancestry[-1], "base", f"unknown profile {base}{_suggestion(base, entries)}")
        if base in ancestry:
            cycle = " -> ".join([*ancestry[ancestry.index(base) :], base])
            raise ProfileError(ancestry[-1], "base", f"circular inheritance: {cycle}")
        if len(ancestry) > MAX_BASES:
            raise ProfileError(
                name, "base", f"inherits over more than {MAX_BASES} profiles; shorten the chain of base:"
            )
        ancestry.append(base)
    return ancestry


def _suggestion(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if similar := difflib.get_close_matches(name, names, n=1):
        return f", did you mean {similar[0]}?"
    return f", known profiles: {', '.join(names)}" if len(names) <= 20 else ""


def _check(profile: Profile) -> None:
    _check_name(profile.name, profile, None)
    for alias in profile.aliases:
        _check_name(alias, profile, "aliases")
    for key, minimum in _MINIMUM.items():
        value = getattr(profile, key)
        if isinstance(value, int | float) and not value >= minimum:
            raise ProfileError(profile.name, key, f"must be at least {minimum}, got {value}")
    for device in profile.devices or ():
        if not is_device_name(device):
            raise ProfileError(profile.name, "devices", f"{device!r} is not a device: they are gpu0, gpu1 and so on")
    _check_source(profile)
    for path, message in profile.request.mistakes() if profile.request is not None else ():
        raise ProfileError(profile.name, ".".join(("request", *path)), message)
    engine = profile.definition
    for argument in profile.args if engine is None or engine.llama_server else ():
        flag = argument.partition("=")[0]
        if flag in _FLAGS:
            raise ProfileError(profile.name, "args", f"{flag} is set by the supervisor{_alternative(_FLAGS[flag])}")
    for variable, value in profile.env.items():
        if variable in _VARIABLES:
            message = f"{variable} is set by the supervisor{_alternative(_VARIABLES[variable])}"
            raise ProfileError(profile.name, "env", message)
        if not _VARIABLE.fullmatch(variable) or "\0" in value:
            raise ProfileError(profile.name, "env", f"{variable!r} is not a valid environment variable")


def _alternative(key: str | None) -> str:
    return f": use {key} instead" if key else ": leave it out"


def _check_source(profile: Profile) -> None:
    engine = profile.definition
    if not profile.model and engine is not None and not engine.needs_model:
        return
    if engine is not None and not engine.llama_server and is_hub_name(profile.model):
        return
    if profile.sha256 is not None and not _SHA256.fullmatch(profile.sha256):
        raise ProfileError(profile.name, "sha256", "must be 64 hexadecimal digits in lower case")
    try:
        source = ModelSource.parse(profile.model)
    except SourceError as error:
        raise ProfileError(profile.name, "model", str(error)) from None
    if source.kind == "https" and profile.sha256 is None:
        raise ProfileError(profile.name, "sha256", "is required for a model from a web address")


def _check_name(name: str, profile: Profile, key: str | None) -> None:
    segments = name.partition(":")[0].split("/")
    if not _NAME.fullmatch(name) or any(segment in ("", ".", "..") for segment in segments):
        raise ProfileError(
            profile.name,
            key,
            f"{name!r} is not a valid name: use at most 128 letters, digits and . _ - @ /, optionally followed by a :tag",
        )


def _name_errors(profiles: Iterable[Profile]) -> Iterator[ProfileError]:
    taken: dict[str, tuple[Profile, str]] = {}
    for profile in profiles:
        for name in (profile.name, *profile.aliases):
            key = "aliases" if name is not profile.name else None
            other, spelling = taken.setdefault(name_key(name), (profile, name))
            if other is not profile:
                owner = "a profile" if spelling == other.name else f"an alias of {other.name}"
                yield ProfileError(profile.name, key, f"the name {name} is taken: {spelling} is {owner}")
