"""What a profile is: a named way to run a model, and what its file says of itself. Values only."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF file says in its header.

    `parameters` is the number of weights, `training_context` the tokens it was trained on, `metadata` all keys of
    the header with arrays replaced by `None` (they are large), `bytes` the size of all parts of the file.
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


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named way to run a model, complete: inheritance is resolved and defaults are filled in.

    `model` is a path, `hf:org/repo/file.gguf`, `https://...` with `sha256`, or `pypi:package==version/file.gguf`.
    Times are in seconds, `memory` in bytes. `ttl_s` of `None` never unloads.
    """

    name: str
    model: str
    sha256: str | None = None
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
    stop_grace_s: float | None = None
    memory: int | None = None
    pinned: bool = False
    listed: bool = True
    default: bool = False
    engine: str | None = None
