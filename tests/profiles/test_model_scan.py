"""Models in folders: which files are models, what is left out and why, and their names."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.model_folders import write_chat, write_embeddings, write_folder, write_other, write_parts, write_projector

from hostler.profiles import model_scan
from hostler.profiles.model_scan import MAX_DEPTH, ModelScan, profile_names, scan_models


def names(scan: ModelScan) -> list[str]:
    return [model.path.name for model in scan.models]


def reasons(scan: ModelScan) -> dict[str, str]:
    return {each.path.name: each.reason for each in scan.left_out}


def test_finds_models_in_folders_below_and_through_links(tmp_path: Path) -> None:
    write_chat(tmp_path / "models/a.gguf")
    write_chat(tmp_path / "models/deep/er/b.GGUF")
    write_chat(tmp_path / "elsewhere/c.gguf")
    write_chat(tmp_path / "models/.hidden/d.gguf")
    (tmp_path / "models/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "models/again.gguf").symlink_to(tmp_path / "models/a.gguf")
    (tmp_path / "models/deep/loop").symlink_to(tmp_path / "models")
    (tmp_path / "models/notes.txt").write_text("no model")
    scan = scan_models([tmp_path / "models"])
    assert names(scan) == ["a.gguf", "b.GGUF", "c.gguf"]
    assert scan.left_out == ()


def test_folders_without_end_are_not_followed(tmp_path: Path) -> None:
    write_chat(tmp_path / "/".join(["d"] * (MAX_DEPTH + 1)) / "a.gguf")
    assert scan_models([tmp_path]).models == ()


def test_a_file_that_is_named_may_have_any_name(tmp_path: Path) -> None:
    blob = write_chat(tmp_path / "sha256-0123")
    assert names(scan_models([blob, blob])) == ["sha256-0123"]


def test_a_model_in_parts_is_one_model(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, "big", 3)
    scan = scan_models([tmp_path])
    assert names(scan) == ["big-00001-of-00003.gguf"]
    assert scan.models[0].files == tuple(parts)
    assert scan.models[0].size == sum(part.stat().st_size for part in parts)


def test_a_model_with_a_part_missing_is_left_out(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, "big", 3)
    parts[1].unlink()
    scan = scan_models([tmp_path])
    assert scan.models == ()
    assert "big-00002-of-00003.gguf cannot be read: No such file" in reasons(scan)["big-00001-of-00003.gguf"]
    parts[0].unlink()
    assert reasons(scan_models([tmp_path])) == {
        "big-00001-of-00003.gguf": "is missing, but later parts of it are there"
    }


def test_damaged_files_are_named_and_left_out(tmp_path: Path) -> None:
    whole = write_chat(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-1000])
    (tmp_path / "page.gguf").write_bytes(b"<!doctype html>")
    (tmp_path / "empty.gguf").write_bytes(b"")
    scan = scan_models([tmp_path])
    assert names(scan) == ["whole.gguf"]
    assert reasons(scan) == {
        "cut.gguf": f"is truncated at {len(whole) - 1000} bytes; the download may be incomplete",
        "empty.gguf": "is empty; the download may be incomplete",
        "page.gguf": "is not a GGUF file: it is a web page; download the file itself",
    }


@pytest.mark.parametrize("suffix", [".aria2", ".part", ".crdownload"])
def test_a_file_with_a_download_beside_it_is_left_out(tmp_path: Path, suffix: str) -> None:
    write_chat(tmp_path / "a.gguf")
    (tmp_path / f"a.gguf{suffix}").touch()
    assert reasons(scan_models([tmp_path])) == {"a.gguf": f"is being downloaded: a.gguf{suffix} is beside it"}


def test_headers_say_what_a_model_is_for(tmp_path: Path) -> None:
    write_chat(tmp_path / "a.gguf")
    write_embeddings(tmp_path / "b.gguf")
    write_embeddings(tmp_path / "c.gguf", pooling=4)
    assert [model.kind for model in scan_models([tmp_path]).models] == ["chat", "embeddings", "rerank"]


def test_other_gguf_files_are_no_models(tmp_path: Path) -> None:
    write_other(tmp_path / "lora.gguf", "adapter")
    write_other(tmp_path / "matrix.gguf", "imatrix")
    write_projector(tmp_path / "mmproj.gguf")
    assert reasons(scan_models([tmp_path])) == {
        "lora.gguf": "is a LoRA adapter, not a model",
        "matrix.gguf": "is an importance matrix, not a model",
        "mmproj.gguf": "is a projector without a model beside it",
    }


def test_names_are_those_of_files_and_of_folders_where_several_have_one() -> None:
    paths = [
        Path("/m/Qwen3-8B-Q4_K_M.gguf"),
        Path("/m/big-00001-of-00002.gguf"),
        Path("/m/one/model.gguf"),
        Path("/m/two/model.gguf"),
        Path("/m/ä ö.gguf"),
    ]
    assert list(profile_names(paths).values()) == ["qwen3-8b-q4_k_m", "big", "model", "two-model", "a-o"]
    assert profile_names([Path("/m/x/a.gguf")], {"a"}) == {Path("/m/x/a.gguf"): "x-a"}


def test_folders_of_safetensors_are_models_if_they_are_whole(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vendor/Model-8B", context=8192)
    write_folder(tmp_path / "vendor/Half", parts=2)
    (tmp_path / "vendor/Half/model-00002.safetensors").unlink()
    scan = scan_models([tmp_path])
    assert [(model.path, model.is_folder, model.facts.training_context) for model in scan.models] == [
        (folder, True, 8192)
    ]
    assert scan.models[0].files == (folder / "config.json", folder / "model-00001.safetensors")
    assert reasons(scan)["Half"].startswith("is not whole: model-00002.safetensors cannot be read")
    assert profile_names([folder]) == {folder: "model-8b"}
    assert scan_models([folder]).models == scan.models


@pytest.fixture
def other_user() -> Iterator[Path]:
    """A folder of another user, as whom the test runs on: root may read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in folder.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o444, 0o100])
def test_what_may_not_be_read_is_left_out(other_user: Path, mode: int) -> None:
    write_chat(other_user / "mine.gguf")
    write_chat(other_user / "closed/inner.gguf")
    (other_user / "closed/below").mkdir()
    write_chat(other_user / "secret.gguf").chmod(0o000)
    (other_user / "closed").chmod(mode)
    if os.getuid() == 0:
        os.seteuid(65534)
    scan = scan_models([other_user, other_user / "closed" / "below"])
    assert [each.path.name for each in scan.models] == ["mine.gguf"]
    assert "Permission denied" in reasons(scan)["secret.gguf"]
    closed = [each for each in scan.left_out if each.path.is_relative_to(other_user / "closed")]
    assert closed and all("Permission denied" in each.reason for each in closed)


def test_a_link_that_leads_back_to_itself_is_left_out(tmp_path: Path) -> None:
    for name, target in (("loop.gguf", "loop.gguf"), ("a.gguf", "b.gguf"), ("b.gguf", "a.gguf"), ("in", ".")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "gone.gguf").symlink_to("nothing.gguf")
    write_chat(tmp_path / "whole.gguf")
    scan = scan_models([tmp_path, tmp_path / "loop.gguf"])
    assert names(scan) == ["whole.gguf"]
    assert reasons(scan).keys() == {"loop.gguf", "a.gguf", "b.gguf", "gone.gguf"}


def test_models_for_whisper_are_named_with_their_engine(tmp_path: Path) -> None:
    (tmp_path / "ggml-base.en.bin").write_bytes(b"lmgg")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert "engine: whisper-server" in reasons(scan_models([tmp_path]))["ggml-base.en.bin"]
    assert len(reasons(scan_models([tmp_path]))) == 1


def test_a_name_that_is_not_text_is_left_out(tmp_path: Path) -> None:
    write_chat(tmp_path / "whole.gguf")
    try:
        (tmp_path / os.fsdecode(b"\xff.gguf")).write_bytes((tmp_path / "whole.gguf").read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    scan = scan_models([tmp_path])
    assert names(scan) == ["whole.gguf"]
    assert [each.reason for each in scan.left_out] == ["has a name that is not text in UTF-8: rename it"]


def test_other_files_do_not_hide_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (tmp_path / f"note{number}.txt").touch()
    write_chat(tmp_path / "zz.gguf")
    monkeypatch.setattr(model_scan, "MAX_FILES", 10)
    assert names(scan_models([tmp_path])) == ["zz.gguf"]
    monkeypatch.setattr(model_scan, "MAX_NAMES", 20)
    assert "has more than 20 files" in reasons(scan_models([tmp_path]))[tmp_path.name]


def test_no_more_models_are_looked_at_than_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write_chat(tmp_path / f"{number}.gguf")
    monkeypatch.setattr(model_scan, "MAX_FILES", 2)
    scan = scan_models([tmp_path])
    assert names(scan) == ["0.gguf", "1.gguf"] and "more than 2 files of models" in reasons(scan)[tmp_path.name]
