"""Projectors and drafts are paired with the models that they belong to, and with no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.model_folders import write_chat, write_draft, write_embeddings, write_projector

from hostler.profiles.model_scan import scan_models


def pairs(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """The projector and the draft of each model."""
    return {
        model.path.name: (model.projector and model.projector.name, model.draft and model.draft.name)
        for model in scan_models([folder]).models
    }


@pytest.mark.parametrize("projector", ["mmproj-F16.gguf", "mmproj-model-f16.gguf", "mmproj-Vision-4B-it-BF16.gguf"])
def test_a_projector_belongs_to_every_quantization_of_the_only_model_beside_it(tmp_path: Path, projector: str) -> None:
    write_chat(tmp_path / "Vision-4B-it-Q4_K_M.gguf")
    write_chat(tmp_path / "Vision-4B-it-Q8_0.gguf")
    write_projector(tmp_path / projector)
    assert pairs(tmp_path) == {
        "Vision-4B-it-Q4_K_M.gguf": (projector, None),
        "Vision-4B-it-Q8_0.gguf": (projector, None),
    }


def test_of_several_models_the_one_that_a_projector_is_named_for_gets_it(tmp_path: Path) -> None:
    write_chat(tmp_path / "one-4b-Q4_0.gguf")
    write_chat(tmp_path / "two-4b-Q4_0.gguf")
    write_projector(tmp_path / "mmproj-two-4b-f16.gguf")
    assert pairs(tmp_path) == {"one-4b-Q4_0.gguf": (None, None), "two-4b-Q4_0.gguf": ("mmproj-two-4b-f16.gguf", None)}


def test_the_header_decides_where_the_name_does_not(tmp_path: Path) -> None:
    write_chat(tmp_path / "one.gguf", "One", width=64)
    write_chat(tmp_path / "two.gguf", "Two", width=128)
    write_projector(tmp_path / "mmproj.gguf", width=128)
    assert pairs(tmp_path)["two.gguf"] == ("mmproj.gguf", None)
    assert pairs(tmp_path)["one.gguf"] == (None, None)
    write_projector(tmp_path / "mmproj.gguf", width=999, name="One")
    assert pairs(tmp_path)["one.gguf"] == ("mmproj.gguf", None)


def test_no_projector_is_taken_from_another_folder_or_for_embeddings(tmp_path: Path) -> None:
    write_chat(tmp_path / "a/a.gguf")
    write_projector(tmp_path / "b/mmproj.gguf")
    write_embeddings(tmp_path / "b/vectors.gguf")
    assert set(pairs(tmp_path).values()) == {(None, None)}


def test_of_several_projectors_one_in_half_precision_is_used(tmp_path: Path) -> None:
    write_chat(tmp_path / "m-Q4_0.gguf")
    for name in ("mmproj-m-Q8_0.gguf", "mmproj-m-F16.gguf", "mmproj-m-F32.gguf"):
        write_projector(tmp_path / name)
    scan = scan_models([tmp_path])
    assert scan.models[0].projector is not None
    assert [each.reason for each in scan.left_out] == ["is a projector of a model that another one is used for"] * 2


@pytest.mark.parametrize("draft", ["draft-m-0.5b.gguf", "m-8b-draft.gguf", "mtp-m-8b-Q8_0.gguf"])
def test_a_draft_belongs_to_the_model_beside_it(tmp_path: Path, draft: str) -> None:
    write_chat(tmp_path / "m-8b-Q4_0.gguf")
    write_draft(tmp_path / draft)
    assert pairs(tmp_path) == {"m-8b-Q4_0.gguf": (None, draft)}


def test_a_draft_with_another_vocabulary_or_of_another_model_is_left_out(tmp_path: Path) -> None:
    write_chat(tmp_path / "m-8b.gguf")
    write_draft(tmp_path / "draft-m-8b.gguf", vocabulary=50)
    scan = scan_models([tmp_path])
    assert scan.models[0].draft is None
    assert [each.reason for each in scan.left_out] == ["is a draft for another model, which was not found beside it"]
    write_draft(tmp_path / "draft-m-8b.gguf")
    write_chat(tmp_path / "other-8b.gguf")
    assert pairs(tmp_path) == {"m-8b.gguf": (None, "draft-m-8b.gguf"), "other-8b.gguf": (None, None)}
