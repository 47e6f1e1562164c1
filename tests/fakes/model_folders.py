"""Writes folders of small model files: headers are real, weights are zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.gguf_files import STR, U32, GgufWriter

#: A small tensor, so that a file has weights.
_WEIGHTS = [("token_embd.weight", (64, 100), 0)]


def chat_keys(name: str = "Tiny", *, width: int = 64, **more: Any) -> list[tuple[str, int, Any]]:
    """The header of a chat model; `more` are numbers at keys of its architecture."""
    keys: list[tuple[str, int, Any]] = [
        ("general.architecture", STR, "llama"),
        ("general.name", STR, name),
        ("llama.context_length", U32, 2048),
        ("llama.embedding_length", U32, width),
        ("llama.block_count", U32, 4),
        ("llama.attention.head_count", U32, 2),
    ]
    return keys + [(f"llama.{key}", U32, value) for key, value in more.items()]


def write_chat(path: Path, name: str = "Tiny", *, width: int = 64, weights: int = 100, **more: Any) -> Path:
    """A chat model whose vocabulary has as many tokens as `weights` has rows."""
    return _write(path, chat_keys(name, width=width, **more), [("token_embd.weight", (width, weights), 0)])


def write_embeddings(path: Path, *, pooling: int = 1) -> Path:
    """A model for embeddings; with the pooling 4 a reranker."""
    return write_chat(path, pooling_type=pooling)


def write_draft(path: Path, *, vocabulary: int = 100) -> Path:
    """A smaller model with this vocabulary."""
    return write_chat(path, "Draft", width=16, weights=vocabulary)


def write_projector(path: Path, *, width: int = 64, name: str = "") -> Path:
    """A projector whose embeddings have this length, perhaps for the model of this name."""
    keys: list[tuple[str, int, Any]] = [
        ("general.architecture", STR, "clip"),
        ("clip.vision.projection_dim", U32, width),
    ]
    return _write(path, [*keys, *([("general.name", STR, name)] if name else [])], _WEIGHTS)


def write_other(path: Path, kind: str) -> Path:
    """A GGUF file that is no model: `adapter`, `imatrix`."""
    return _write(path, [*chat_keys(), ("general.type", STR, kind)], _WEIGHTS)


def write_parts(folder: Path, stem: str, count: int) -> list[Path]:
    """A model in several files."""
    return [write_chat(folder / f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]


def safetensors() -> bytes:
    """A file with one tensor of 64 bytes."""
    header = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def write_folder(folder: Path, *, parts: int = 1, context: int = 4096) -> Path:
    """A folder of safetensors, as on the Hugging Face Hub."""
    folder.mkdir(parents=True)
    names = [f"model-{part:05}.safetensors" for part in range(1, parts + 1)]
    for name in names:
        (folder / name).write_bytes(safetensors())
    index = {"weight_map": {f"w{place}": name for place, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context, "hidden_size": 64}))
    return folder


def _write(path: Path, keys: list[tuple[str, int, Any]], tensors: list[tuple[str, tuple[int, ...], int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(GgufWriter().bytes(keys, tensors))
    return path
