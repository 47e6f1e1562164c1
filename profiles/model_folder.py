"""A model that is a folder of files, as on the Hugging Face Hub: what its config.json says. Blocks."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hostler.profiles.file_reading import FileTooLarge, read_limited
from hostler.profiles.schema import ModelFacts

_MAX_CONFIG = 1024 * 1024
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz"})


class _Config(msgspec.Struct, frozen=True):
    max_position_embeddings: int = 0
    num_hidden_layers: int = 0
    hidden_size: int = 0


def folder_facts(folder: Path) -> ModelFacts:
    """The size of the weights, and the figures of config.json as far as it has them. The engine knows what else it can do."""
    config = _Config()
    try:
        config = msgspec.json.decode(read_limited(folder / "config.json", _MAX_CONFIG), type=_Config)
    except (OSError, FileTooLarge, msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        weights = sum(each.stat().st_size for each in folder.iterdir() if each.suffix in _WEIGHTS)
    except OSError:
        weights = 0
    return ModelFacts(
        name=folder.name,
        training_context=config.max_position_embeddings,
        blocks=config.num_hidden_layers,
        embedding_length=config.hidden_size,
        bytes=weights,
        declared=True,
    )
