"""Copies of a GGUF model with all of its weights: in several files, or as one for embeddings.

As a program, `python model_copies.py MODEL.gguf FOLDER` fills a folder as a user may have one: the model itself, one for
embeddings, and one in two parts.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFReader, GGUFWriter


def fill_folder(model: Path, folder: Path) -> None:
    """Fill a folder with a chat model, one for embeddings, and one in two parts: `chat`, `vectors-f16` and `big`."""
    for name in (".", "embeddings", "split"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, folder / "Chat-Q8_0.gguf")
    copy_model(model, [folder / "embeddings/Vectors-F16.gguf"], pooling=1)
    copy_model(model, [folder / f"split/Big-0000{part}-of-00002.gguf" for part in (1, 2)])


def copy_model(source: Path, targets: Sequence[Path], *, pooling: int | None = None) -> None:
    """Write the model in as many parts as there are targets, with the same header, and perhaps a kind of pooling."""
    reader = GGUFReader(source)
    share = -(-len(reader.tensors) // len(targets))
    for number, target in enumerate(targets):
        writer = GGUFWriter(target, "llama")
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            if number == 0:
                writer.add_key_value(field.name, field.contents(), field.types[0], *(field.types[1:2]))
        if pooling is not None:
            writer.add_uint32("llama.pooling_type", pooling)
        if len(targets) > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", len(targets))
            writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * share : (number + 1) * share]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    fill_folder(Path(sys.argv[1]), Path(sys.argv[2]))
