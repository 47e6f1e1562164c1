"""What a folder of model files says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.model_folders import safetensors, write_folder

from hostler.profiles.model_folder import folder_facts, folder_mistake, is_model_folder, weight_files


def test_the_figures_of_config_json_and_the_size_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 40960, "num_hidden_layers": 36, "x": [1]}')
    (tmp_path / "a.safetensors").write_bytes(bytes(100))
    (tmp_path / "b.safetensors").write_bytes(bytes(50))
    (tmp_path / "README.md").write_bytes(bytes(10))
    facts = folder_facts(tmp_path)
    assert (facts.training_context, facts.blocks, facts.bytes) == (40960, 36, 150)


@pytest.mark.parametrize("text", ["", "[]", '{"num_hidden_layers": "many"}'])
def test_a_folder_without_a_readable_config_has_a_size_alone(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.bin").write_bytes(bytes(7))
    assert folder_facts(tmp_path).bytes == 7
    assert folder_facts(tmp_path).blocks == 0


def test_a_folder_that_is_gone_has_no_size(tmp_path: Path) -> None:
    assert folder_facts(tmp_path / "gone").bytes == 0


def test_a_whole_folder_is_a_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", parts=2)
    assert is_model_folder(folder) and folder_mistake(folder) is None
    assert [file.name for file in weight_files(folder)] == ["model-00001.safetensors", "model-00002.safetensors"]
    (folder / "model.safetensors.index.json").unlink()
    assert len(weight_files(folder)) == 2
    (folder / "config.json").unlink()
    assert not is_model_folder(folder)


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (None, "is not whole: model-00002.safetensors cannot be read: No such file or directory"),
        (safetensors()[:-1], "is not whole: model-00002.safetensors is cut off; the download may be incomplete"),
        (safetensors()[:20], "is damaged: model-00002.safetensors is no safetensors file, or is cut off"),
        (b"\xff" * 40, "is damaged: model-00002.safetensors is no safetensors file"),
    ],
)
def test_a_folder_that_is_not_whole_says_why(tmp_path: Path, content: bytes | None, mistake: str) -> None:
    folder = write_folder(tmp_path / "m", parts=2)
    last = folder / "model-00002.safetensors"
    last.unlink()
    if content is not None:
        last.write_bytes(content)
    assert folder_mistake(folder) == mistake
