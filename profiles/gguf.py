"""What a model's file says of itself, derived as Ollama derives it. Not how a GGUF file is read: see `gguf_header`.

Blocks: callers on an event loop use a thread.
"""

from __future__ import annotations

import hashlib
import re
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hostler.profiles.gguf_header import MAX_LAYERS, GGUFError, Header, Scalar, file_status, read_header
from hostler.profiles.schema import ModelFacts, Profile

__all__ = ["FactsCache", "GGUFError", "digest", "parts_of", "read_facts", "tensors"]

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

# With both, an engine can put words between others.
_FILLING = (("fim_pre_token_id", "fim_suf_token_id"), ("prefix_token_id", "suffix_token_id"))

MAX_PARTS = 999
MAX_TENSORS_BYTES = 128 * 1024
MAX_TOLD_BYTES = 4 * 1024 * 1024

_SAMPLE = 64 * 1024
_SAMPLES = 32
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_SPLITS_THINKING = re.compile(r"split\(\s*(['\"])</think>\1")


class FactsCache:
    """Reads each file's facts once, and again when its size or its time of change differ. Safe from threads."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], ModelFacts]] = {}
        self._lock = threading.Lock()

    def read(self, path: Path) -> ModelFacts:
        """`read_facts`, remembered. Raises `GGUFError`, which is not remembered."""
        look = self._look(path)
        with self._lock:
            known = self._known.get(path)
        if known is not None and known[0] == look:
            return known[1]
        facts = read_facts(path)
        with self._lock:
            self._known[path] = (look, facts)
        return facts

    def peek(self, path: Path) -> ModelFacts | None:
        """What is known of `path` as it is now, without reading it."""
        with self._lock:
            known = self._known.get(path)
        try:
            return known[1] if known is not None and known[0] == self._look(path) else None
        except GGUFError:
            return None

    @staticmethod
    def _look(path: Path) -> tuple[int, int]:
        status = file_status(path)
        return status.st_size, status.st_mtime_ns


def read_facts(path: Path) -> ModelFacts:
    """The facts of a model, all its parts counted. Raises `GGUFError`; takes bounded time and memory."""
    parts = parts_of(path)
    headers = [read_header(part) for part in parts]
    first = headers[0]
    architecture = _text(first.values.get("general.architecture"))
    own = _Own(first, architecture)
    template = _text(first.values.get("tokenizer.chat_template"))
    file_type = first.values.get("general.file_type")
    return ModelFacts(
        architecture=architecture,
        name=_text(first.values.get("general.name")),
        parameters=sum(header.parameters for header in headers),
        quantization=_FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        training_context=own.number("context_length"),
        embedding_length=own.number("embedding_length"),
        blocks=own.number("block_count"),
        chat_template=template,
        capabilities=_capabilities(own, template),
        tensors=_packed(headers),
        metadata={key: value for key, value in first.values.items() if not key.startswith("split.")},
        bytes=sum(header.size for header in headers),
        kv_bytes_per_token=_kv_bytes_per_token(own),
        sliding_window=max([own.number("attention.sliding_window"), *own.numbers("attention.sliding_window")]),
        recurrent=_is_recurrent(own),
    )


def parts_of(path: Path) -> list[Path]:
    """All files of a model, in order: more than one where the name ends in `-00001-of-0000N.gguf`."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if not 1 <= count <= MAX_PARTS:
        raise GGUFError("model_damaged", f"{path} claims to be one of {count} parts")
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[3]}{match[4]}") for part in range(1, count + 1)]


def digest(profile: Profile, path: Path | None) -> str:
    """64 hex digits that are distinct per profile and stay the same while the file and the settings do.

    With a known checksum the file is not touched; else its size, its header and some blocks stand for it, since
    reading gigabytes would hold up the start.
    """
    identity = f"sha256:{profile.sha256}" if profile.sha256 else f"source:{profile.model}"
    if profile.sha256 is None and path is not None:
        identity = _sampled(path)
    settings = (profile.name, profile.context, profile.parallel, profile.embeddings, profile.args, identity)
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()


class _Own:
    """The keys that an architecture has for itself: `llama.context_length` and so on."""

    def __init__(self, header: Header, architecture: str) -> None:
        self._header = header
        self.architecture = architecture

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._header.values

    def number(self, key: str) -> int:
        """The number at `key`, 0 for anything that is not a sensible one."""
        value = self._header.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and 0 <= value < 1 << 48 else 0

    def numbers(self, key: str) -> tuple[int, ...]:
        """The numbers at `key` where there is one for each layer."""
        return tuple(
            min(max(number, 0), 1 << 32) for number in self._header.layers.get(f"{self.architecture}.{key}", ())
        )

    def tokenizer(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self._header.values

    def group(self, prefix: str) -> bool:
        return any(key.startswith(f"{self.architecture}.{prefix}.") for key in self._header.values)


def _capabilities(own: _Own, template: str) -> tuple[str, ...]:
    found = ["embedding" if own.has("pooling_type") else "completion"]
    if own.has("vision.block_count"):
        found.append("vision")
    if own.has("audio.block_count"):
        found.append("audio")
    if any(all(own.tokenizer(key) for key in pair) for pair in _FILLING):
        found.append("insert")
    if "tools" in template or "tool_call" in template:
        found.append("tools")
    if ("<think>" in template and "</think>" in template) or _SPLITS_THINKING.search(template):
        found.append("thinking")
    return tuple(found)


def tensors(facts: ModelFacts) -> list[tuple[str, str, list[int]]]:
    """The file's tensors: names, types and shapes; none if they are not known."""
    if not facts.tensors:
        return []
    try:
        told = zlib.decompressobj().decompress(facts.tensors, MAX_TOLD_BYTES)
        return msgspec.json.decode(told, type=list[tuple[str, str, list[int]]])
    except (zlib.error, msgspec.DecodeError, RecursionError):
        return []


def _packed(headers: list[Header]) -> bytes:
    # Facts travel with every snapshot of a host: a thousand tensors take a few kilobytes this way.
    told = [(name, _TENSOR_TYPES.get(kind, "unknown"), shape) for each in headers for name, kind, shape in each.tensors]
    packed = zlib.compress(msgspec.json.encode(told), 9)
    return packed if told and len(packed) <= MAX_TENSORS_BYTES else b""


def _kv_bytes_per_token(own: _Own) -> int:
    """Bytes of a half-precision cache for one token: keys and values of every layer that has any."""
    layers = min(own.number("block_count"), MAX_LAYERS)
    heads = max([own.number("attention.head_count"), *own.numbers("attention.head_count")])
    width = own.number("embedding_length") // heads if heads else 0
    keys = own.number("attention.key_length") or width
    values = own.number("attention.value_length") or width
    per_layer = own.numbers("attention.head_count_kv")
    if not per_layer:
        kv_heads = own.number("attention.head_count_kv") if own.has("attention.head_count_kv") else heads
        per_layer = (kv_heads,) * layers
    return sum(per_layer) * (keys + values) * 2


def _is_recurrent(own: _Own) -> bool:
    groups = ("ssm", "wkv", "shortconv", "rglru", "kda")
    return any(own.group(group) for group in groups) or own.architecture.startswith(("rwkv", "mamba", "lfm2"))


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else ""


def _sampled(path: Path) -> str:
    """Stands for a file's content: its size, and blocks from everywhere in it."""
    sums = hashlib.sha256()
    for part in parts_of(path):
        size = file_status(part).st_size
        sums.update(f"{size}:".encode())
        try:
            with part.open("rb", buffering=0) as file:
                for index in range(_SAMPLES):
                    file.seek(max(size - _SAMPLE, 0) * index // (_SAMPLES - 1))
                    sums.update(file.read(_SAMPLE))
        except OSError as error:
            raise GGUFError("file_missing", f"{part} cannot be read: {error.strerror}") from None
    return f"sampled:{sums.hexdigest()}"
