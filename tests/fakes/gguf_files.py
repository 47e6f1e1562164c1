"""Writes GGUF files for tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, ClassVar

STR, ARR, U32, I32, F32, BOOL, F64, U64 = 8, 9, 4, 5, 6, 7, 12, 10
TEMPLATE = "{% if tools %}<tool_call>{% endif %}<think>{{ content }}</think>"
LLAMA: list[tuple[str, int, Any]] = [
    ("general.architecture", STR, "llama"),
    ("general.name", STR, "Tiny"),
    ("general.file_type", U32, 15),
    ("llama.context_length", U32, 2048),
    ("llama.embedding_length", U32, 64),
    ("llama.block_count", U32, 4),
    ("llama.attention.head_count", U32, 8),
    ("llama.attention.head_count_kv", U32, 2),
    ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
    ("llama.rope.freq_base", F32, 10000.0),
    ("tokenizer.ggml.add_bos_token", BOOL, 1),
    ("tokenizer.ggml.tokens", ARR, (STR, ["a", "bc", "ä"] * 50)),
    ("tokenizer.ggml.scores", ARR, (F32, [0.5] * 9000)),
    ("tokenizer.chat_template", STR, TEMPLATE),
]
TENSORS = [("token_embd.weight", (64, 100), 0), ("output.weight", (64, 3, 2), 0)]


class GgufWriter:
    """Makes GGUF files: keys as (name, type, value), tensors as (name, dimensions, type)."""

    U8, U16, U32, I32, F32, BOOL, STR, ARR, U64, F64 = 0, 2, 4, 5, 6, 7, 8, 9, 10, 12
    FORMS: ClassVar = {0: "B", 2: "H", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 12: "d"}

    def __init__(self, version: int = 3) -> None:
        self.version = version
        self.word = "<I" if version == 1 else "<Q"

    def text(self, value: str) -> bytes:
        raw = value.encode() + (b"\0" if self.version == 1 else b"")
        return struct.pack(self.word, len(raw)) + raw

    def value(self, kind: int, value: Any) -> bytes:
        if kind == self.STR:
            return self.text(value)
        if kind == self.ARR:
            inner, items = value
            return (
                struct.pack("<I", inner)
                + struct.pack(self.word, len(items))
                + b"".join(self.value(inner, item) for item in items)
            )
        return struct.pack("<" + self.FORMS[kind], value)

    def bytes(
        self,
        keys: Sequence[tuple[str, int, Any]] = (),
        tensors: Sequence[tuple[str, Sequence[int], int]] = (),
        *,
        data: int | None = None,
    ) -> bytes:
        raw = b"GGUF" + struct.pack("<I", self.version)
        raw += struct.pack(self.word, len(tensors)) + struct.pack(self.word, len(keys))
        for name, kind, value in keys:
            raw += self.text(name) + struct.pack("<I", kind) + self.value(kind, value)
        offset = 0
        for name, dimensions, kind in tensors:
            raw += self.text(name) + struct.pack("<I", len(dimensions))
            raw += b"".join(struct.pack(self.word, size) for size in dimensions)
            raw += struct.pack("<IQ", kind, offset)
            size = 4
            for dimension in dimensions:
                size *= dimension
            offset += size + -size % 32
        return raw + b"\0" * (-len(raw) % 32) + b"\0" * (offset if data is None else data)
