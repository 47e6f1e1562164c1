"""Facts about a model from its GGUF header, derived as Ollama derives them. How a header is read: `gguf_header`.

Blocks: callers on an event loop use a thread.
"""

from __future__ import annotations

import hashlib
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hostler.profiles.gguf_header import (
    MAX_LAYERS,
    GGUFError,
    Header,
    Scalar,
    file_status,
    read_header,
    read_header_start,
)
from hostler.profiles.schema import ModelFacts, Profile

__all__ = ["FactsCache", "GGUFError", "ReadFacts", "digest", "facts_of_start", "read_facts", "shard_paths", "tensors"]

#: Reads the facts of a model, or raises `GGUFError`.
ReadFacts = Callable[[Path], ModelFacts]

_FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip

_TENSOR_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

# With both tokens of a pair, an engine can insert text between a prefix and a suffix.
_INSERT_TOKENS = (("fim_pre_token_id", "fim_suf_token_id"), ("prefix_token_id", "suffix_token_id"))

MAX_SHARDS = 999
MAX_TENSORS_BYTES = 128 * 1024
MAX_UNPACKED_BYTES = 4 * 1024 * 1024

_SAMPLE = 64 * 1024
_SAMPLES = 32
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_SPLITS_THINKING = re.compile(r"split\(\s*(['\"])</think>\1")


class FactsCache:
    """Reads each file's facts once, and again when the file changes or another takes its place. Safe from threads."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], ModelFacts]] = {}
        self._lock = threading.Lock()

    def read(self, path: Path) -> ModelFacts:
        """Raises `GGUFError`, which is not cached."""
        state = self._state(path)
        with self._lock:
            known = self._known.get(path)
        if known is not None and known[0] == state:
            return known[1]
        facts = read_facts(path)
        with self._lock:
            self._known[path] = (state, facts)
        return facts

    @staticmethod
    def _state(path: Path) -> tuple[int, ...]:
        status = file_status(path)
        # A link may lead to another file of the same size and time.
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def read_facts(path: Path) -> ModelFacts:
    """The facts of a model, over all its shards. Raises `GGUFError`; takes bounded time and memory."""
    return _facts([read_header(shard) for shard in shard_paths(path)])


def facts_of_start(start: bytes, *, size: int) -> ModelFacts:
    """The facts that the first bytes of a file give, of a model with `size` bytes. Without weights, and perhaps without a
    chat template; nothing but the size if they are no GGUF file."""
    try:
        return _facts([read_header_start(start, size)])
    except GGUFError:
        return ModelFacts(bytes=size)


def _facts(headers: list[Header]) -> ModelFacts:
    first = headers[0]
    architecture = _text(first.values.get("general.architecture"))
    fields = _ArchitectureFields(first, architecture)
    template = _text(first.values.get("tokenizer.chat_template"))
    file_type = first.values.get("general.file_type")
    return ModelFacts(
        architecture=architecture,
        name=_text(first.values.get("general.name")),
        parameters=sum(header.parameters for header in headers),
        quantization=_FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        training_context=fields.number("context_length"),
        embedding_length=fields.number("embedding_length"),
        blocks=fields.number("block_count"),
        chat_template=template,
        capabilities=_capabilities(fields, template),
        tensors=_pack_tensors(headers),
        metadata={key: value for key, value in first.values.items() if not key.startswith("split.")},
        bytes=sum(header.size for header in headers),
        kv_bytes_per_token=_kv_bytes_per_token(fields),
        sliding_window=max([fields.number("attention.sliding_window"), *fields.numbers("attention.sliding_window")]),
        recurrent=_is_recurrent(fields),
    )


def shard_paths(path: Path) -> list[Path]:
    """All files of a model, in order: more than one where the name ends in `-00001-of-0000N.gguf`."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if not 1 <= count <= MAX_SHARDS:
        raise GGUFError("model_damaged", f"{path} claims to be one of {count} shards")
    return [path.with_name(f"{match[1]}-{shard:05}-of-{match[3]}{match[4]}") for shard in range(1, count + 1)]


def digest(profile: Profile, path: Path | None) -> str:
    """64 hex digits that are distinct per profile and stay the same while the file and the settings do.

    With a configured checksum the file is not read; otherwise its size and samples of it are hashed, since reading
    gigabytes would delay the start. Of a folder only the name counts.
    """
    identity = f"sha256:{profile.sha256}" if profile.sha256 else f"source:{profile.model}"
    if profile.sha256 is None and path is not None and not path.is_dir():
        identity = _sample_hash(path)
    settings = (profile.name, profile.context, profile.parallel, profile.embeddings, profile.args, identity)
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()


class _ArchitectureFields:
    """The keys of a header that start with its architecture: `llama.context_length` and so on."""

    def __init__(self, header: Header, architecture: str) -> None:
        self._header = header
        self.architecture = architecture

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._header.values

    def number(self, key: str) -> int:
        """The number at `key`, 0 if it is missing or absurd."""
        value = self._header.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and 0 <= value < 1 << 48 else 0

    def numbers(self, key: str) -> tuple[int, ...]:
        """The numbers at `key` where there is one per layer."""
        return tuple(
            min(max(number, 0), 1 << 32) for number in self._header.layers.get(f"{self.architecture}.{key}", ())
        )

    def tokenizer(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self._header.values

    def group(self, prefix: str) -> bool:
        return any(key.startswith(f"{self.architecture}.{prefix}.") for key in self._header.values)


def _capabilities(fields: _ArchitectureFields, template: str) -> tuple[str, ...]:
    found = ["embedding" if fields.has("pooling_type") else "completion"]
    if fields.has("vision.block_count"):
        found.append("vision")
    if fields.has("audio.block_count"):
        found.append("audio")
    if any(all(fields.tokenizer(key) for key in pair) for pair in _INSERT_TOKENS):
        found.append("insert")
    if "tools" in template or "tool_call" in template:
        found.append("tools")
    if ("<think>" in template and "</think>" in template) or _SPLITS_THINKING.search(template):
        found.append("thinking")
    return tuple(found)


def tensors(facts: ModelFacts) -> list[tuple[str, str, list[int]]]:
    """Names, types and shapes of the file's tensors; empty if they are unknown."""
    if not facts.tensors:
        return []
    try:
        unpacked = zlib.decompressobj().decompress(facts.tensors, MAX_UNPACKED_BYTES)
        return msgspec.json.decode(unpacked, type=list[tuple[str, str, list[int]]])
    except (zlib.error, msgspec.DecodeError, RecursionError):
        return []


def _pack_tensors(headers: list[Header]) -> bytes:
    # Part of every snapshot of a host: a thousand tensors take a few kilobytes this way.
    listed = [
        (name, _TENSOR_TYPES.get(kind, "unknown"), shape) for each in headers for name, kind, shape in each.tensors
    ]
    packed = zlib.compress(msgspec.json.encode(listed), 9)
    return packed if listed and len(packed) <= MAX_TENSORS_BYTES else b""


def _kv_bytes_per_token(fields: _ArchitectureFields) -> int:
    """Bytes of a half-precision KV cache for one token, over all layers that have one."""
    layers = min(fields.number("block_count"), MAX_LAYERS)
    heads = max([fields.number("attention.head_count"), *fields.numbers("attention.head_count")])
    width = fields.number("embedding_length") // heads if heads else 0
    keys = fields.number("attention.key_length") or width
    values = fields.number("attention.value_length") or width
    per_layer = fields.numbers("attention.head_count_kv")
    if not per_layer:
        kv_heads = fields.number("attention.head_count_kv") if fields.has("attention.head_count_kv") else heads
        per_layer = (kv_heads,) * layers
    return sum(per_layer) * (keys + values) * 2


def _is_recurrent(fields: _ArchitectureFields) -> bool:
    groups = ("ssm", "wkv", "shortconv", "rglru", "kda")
    return any(fields.group(group) for group in groups) or fields.architecture.startswith(("rwkv", "mamba", "lfm2"))


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else ""


def _sample_hash(path: Path) -> str:
    """A hash of each shard's size and of blocks spread over it."""
    sums = hashlib.sha256()
    for shard in shard_paths(path):
        size = file_status(shard).st_size
        sums.update(f"{size}:".encode())
        try:
            with shard.open("rb", buffering=0) as file:
                for index in range(_SAMPLES):
                    file.seek(max(size - _SAMPLE, 0) * index // (_SAMPLES - 1))
                    sums.update(file.read(_SAMPLE))
        except OSError as error:
            raise GGUFError("file_missing", f"{shard} cannot be read: {error.strerror}") from None
    return f"sampled:{sums.hexdigest()}"
