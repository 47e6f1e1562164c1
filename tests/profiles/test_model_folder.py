"""What a folder of model files says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.profiles.model_folder import folder_facts


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
