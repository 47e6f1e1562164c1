"""The table of `hostler up PATH`, and what `--save` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.model_folders import write_chat, write_embeddings, write_parts, write_projector

from hostler.gateway.auth import keys as key_file
from hostler.gateway.cli.found_models import present_models
from hostler.gateway.config import ConfigError, Configuration, Overrides, read
from hostler.gateway.model_finder import ModelFinder
from hostler.supervisor.engine_abilities import EngineAbilities


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFinder:
    """Finds the models in `models`, from an empty working directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    engine = EngineAbilities(program=("llama-server",), knows_devices=True)
    return ModelFinder([tmp_path / "models"], memory=lambda: 8 * 1024**3, abilities=lambda _: engine, gpus=tuple)


def found(finder: ModelFinder, path: Path | None = None, **overrides: str) -> Configuration:
    return Overrides(**overrides).apply(read(path, {}, find_models=finder))


def test_one_table_shows_what_was_chosen_and_why(
    tmp_path: Path, finder: ModelFinder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_chat(tmp_path / "models/chat.gguf")
    write_projector(tmp_path / "models/mmproj.gguf")
    write_embeddings(tmp_path / "models/e/vectors.gguf")
    write_parts(tmp_path / "models/p", "big", 2)
    (tmp_path / "models/broken.gguf").write_bytes(b"GGUF")
    present_models(found(finder), finder.findings, save=False, places=["models"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "engine: llama-server; GPUs: none; memory: 8.0 GiB free"
    assert lines[1] == "MODEL FOR SIZE CONTEXT SLOTS WITH WHY"
    assert lines[2].startswith("chat chat ") and " 2048 1 mmproj takes " in lines[2]
    assert [line.split()[:2] for line in lines[3:5]] == [["vectors", "embeddings"], ["big", "chat"]]
    assert lines[5].startswith("CONTEXT: tokens of a prompt and its answer together.")
    assert lines[6].startswith(f"left out: {tmp_path}/models/broken.gguf is truncated within its header")


def test_nothing_found_is_an_error_with_the_reasons(tmp_path: Path, finder: ModelFinder) -> None:
    (tmp_path / "models/broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError) as caught:
        present_models(found(finder), finder.findings, save=False, places=["models"])
    assert caught.value.mistakes[0] == "no models were found in models; models are GGUF files"
    assert "broken.gguf: is truncated" in caught.value.mistakes[1]


def test_what_is_saved_gives_the_same(tmp_path: Path, finder: ModelFinder, capsys: pytest.CaptureFixture[str]) -> None:
    write_chat(tmp_path / "models/chat $1.gguf")
    write_projector(tmp_path / "models/mmproj.gguf")
    write_embeddings(tmp_path / "models/e/vectors.gguf")
    configuration = found(finder, listen="127.0.0.1:8123", key="secret-key")
    present_models(configuration, finder.findings, save=True, places=["models"])
    assert capsys.readouterr().out.rstrip().endswith("saved 2 profiles in hostler.yaml")
    saved = read(Path("hostler.yaml"), {})
    assert saved.profiles == configuration.profiles
    assert saved.settings.gateway.listen == ("127.0.0.1:8123",)
    assert saved.settings.gateway.api_keys_file is not None
    keys = Path(saved.settings.gateway.api_keys_file)
    assert [each.hash for each in key_file.read(keys)] == [key_file.digest("secret-key")]
    assert "secret-key" not in Path("hostler.yaml").read_text() + keys.read_text()


def test_saving_again_adds_what_is_new_and_keeps_the_rest(tmp_path: Path, finder: ModelFinder) -> None:
    write_chat(tmp_path / "models/chat.gguf")
    path = Path("hostler.yaml")
    path.write_text(f"# mine\nprofiles:\n  own: {{model: {tmp_path}/models/chat.gguf, context: 512}}\n")
    write_chat(tmp_path / "models/new.gguf")
    present_models(found(finder, path), finder.findings, save=True, places=["models"])
    assert path.read_text().startswith("# mine\n")
    assert [(each.name, each.context) for each in read(path, {}).profiles] == [("own", 512), ("new", 2048)]


def test_the_same_command_saves_again(tmp_path: Path, finder: ModelFinder) -> None:
    write_chat(tmp_path / "models/chat.gguf")
    path = Path("hostler.yaml")
    for at in (None, path):
        configuration = found(finder, at, listen="127.0.0.1:8123", key="secret-key")
        present_models(configuration, finder.findings, save=True, places=["models"])
    assert [each.name for each in read(path, {}).profiles] == ["chat"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"listen": "127.0.0.1:1"}, "set gateway.listen there"), ({"key": "another-key"}, "use `hostler keys add`")],
)
def test_a_file_that_exists_keeps_its_address_and_keys(
    tmp_path: Path, finder: ModelFinder, overrides: dict[str, str], message: str
) -> None:
    write_chat(tmp_path / "models/chat.gguf")
    path = Path("hostler.yaml")
    path.write_text("gateway: {listen: ['127.0.0.1:8123'], api_keys: [secret-key]}\nprofiles: {own: {model: x.gguf}}\n")
    with pytest.raises(ConfigError, match=message):
        present_models(found(finder, path, **overrides), finder.findings, save=True, places=["models"])
