"""A model that is a folder of files, as on the Hugging Face Hub: what its config.json says. Blocks."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hostler.profiles.file_reading import FileTooLarge, read_limited
from hostler.profiles.schema import ModelFacts

_MAX_CONFIG = 1024 * 1024
#: Bytes of the header of a file of weights, and of an index of them, at most.
_MAX_INDEX = 64 * 1024 * 1024
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz"})


class _Config(msgspec.Struct, frozen=True):
    max_position_embeddings: int = 0
    num_hidden_layers: int = 0
    hidden_size: int = 0


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str] = {}


class _Tensor(msgspec.Struct, frozen=True):
    data_offsets: tuple[int, int]


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


def is_model_folder(folder: Path) -> bool:
    """Whether this folder is a model in the format of safetensors."""
    try:
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    except OSError:  # it may not be entered
        return False


def weight_files(folder: Path) -> list[Path]:
    """The files with the model's weights, in order: those of its index, else all that are there."""
    try:
        index = read_limited(folder / "model.safetensors.index.json", _MAX_INDEX)
        names = set(msgspec.json.decode(index, type=_Index).weight_map.values())
    except (OSError, FileTooLarge, msgspec.DecodeError, UnicodeDecodeError):
        return sorted(folder.glob("*.safetensors"))
    return sorted(folder / Path(name).name for name in names)


def folder_mistake(folder: Path) -> str | None:
    """Why the model is not whole; `None` if it is, as far as sizes say."""
    for file in weight_files(folder):
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                if length > _MAX_INDEX:
                    return f"is damaged: {file.name} is no safetensors file"
                tensors = msgspec.json.decode(opened.read(length), type=dict[str, msgspec.Raw])
            ends = [
                msgspec.json.decode(raw, type=_Tensor).data_offsets[1]
                for name, raw in tensors.items()
                if name != "__metadata__"
            ]
            size = file.stat().st_size
        except OSError as error:
            return f"is not whole: {file.name} cannot be read: {error.strerror}"
        except (msgspec.DecodeError, UnicodeDecodeError):
            return f"is damaged: {file.name} is no safetensors file, or is cut off"
        if size < 8 + length + max(ends, default=0):
            return f"is not whole: {file.name} is cut off; the download may be incomplete"
    return None
