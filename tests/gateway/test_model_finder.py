"""Models of folders as profiles: chosen once, added when they are whole, and kept while they are loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fakes.model_folders import write_chat, write_draft, write_embeddings, write_folder, write_projector
from msgspec import UNSET

from hostler.gateway.model_finder import ModelFinder
from hostler.supervisor.contract import DeviceVendor, Failure, SupervisorError
from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.engine_abilities import EngineAbilities, EngineDevice

GIB = 1024**3
CPU = EngineAbilities(
    program=("llama-server",), knows_devices=True, draft_heads=frozenset({"draft-mtp", "draft-eagle3"})
)


def finder_of(*places: Path, engine: EngineAbilities = CPU, gpus: tuple[DeviceReading, ...] = ()) -> ModelFinder:
    return ModelFinder(places, memory=lambda: 8 * GIB, abilities=lambda _: engine, gpus=lambda: gpus)


def names(finder: ModelFinder) -> list[str]:
    return [each.name for each in finder.findings.profiles]


def gpu(vendor: DeviceVendor = "nvidia") -> DeviceReading:
    return DeviceReading(id="GPU-1", vendor=vendor, model="RTX 4090", total=24 * GIB, used=2 * GIB)


def test_profiles_say_how_models_run(tmp_path: Path) -> None:
    write_chat(tmp_path / "Chat-Q4_0.gguf")
    write_projector(tmp_path / "mmproj.gguf")
    write_draft(tmp_path / "mtp-Chat.gguf")
    write_embeddings(tmp_path / "v/vectors.gguf")
    write_embeddings(tmp_path / "v/ranks.gguf", pooling=4)
    found = finder_of(tmp_path)((), None)
    assert found is not None
    chat = found["chat-q4_0"]
    assert (chat.model, chat.context, chat.embeddings) == (str(tmp_path / "Chat-Q4_0.gguf"), 2048, UNSET)
    assert (chat.mmproj, chat.draft) == (str(tmp_path / "mmproj.gguf"), str(tmp_path / "mtp-Chat.gguf"))
    assert chat.args == ("--spec-type", "draft-mtp")
    assert (found["vectors"].embeddings, found["vectors"].args) == (True, UNSET)
    assert (found["ranks"].embeddings, found["ranks"].args) == (True, ("--reranking",))


@pytest.mark.parametrize(
    ("draft", "heads", "args"),
    [
        ("Chat-EAGLE3.gguf", {"draft-mtp", "draft-eagle3"}, ("--spec-type", "draft-eagle3")),
        ("Chat-EAGLE3.gguf", {"draft-mtp"}, UNSET),
        ("Chat-draft.gguf", {"draft-mtp", "draft-eagle3"}, UNSET),
    ],
)
def test_a_draft_guesses_by_a_head_if_it_is_one_and_the_engine_takes_it(
    tmp_path: Path, draft: str, heads: set[str], args: object
) -> None:
    write_chat(tmp_path / "Chat-Q4_0.gguf")
    write_draft(tmp_path / draft)
    engine = msgspec.structs.replace(CPU, draft_heads=frozenset(heads))
    found = finder_of(tmp_path, engine=engine)((), None)
    assert found is not None
    assert (found["chat-q4_0"].draft, found["chat-q4_0"].args) == (str(tmp_path / draft), args)


def test_there_is_nothing_to_find_without_folders() -> None:
    finder = finder_of()
    assert finder((), None) is None
    assert not finder.changed()


def test_gpus_of_the_engine_are_used(tmp_path: Path) -> None:
    write_chat(tmp_path / "a.gguf")
    device = EngineDevice(name="CUDA0", model="RTX 4090", total=24 * GIB, free=23 * GIB)
    finder = finder_of(tmp_path, engine=EngineAbilities(program=("x",), devices=(device,), knows_devices=True))
    found = finder((), None)
    assert found is not None and (found["a"].gpu_layers, found["a"].parallel) == (5, 4)


def test_gpus_of_drivers_count_for_an_engine_that_lists_none_and_are_named_where_it_uses_none(tmp_path: Path) -> None:
    write_chat(tmp_path / "a.gguf")
    old = finder_of(tmp_path, engine=EngineAbilities(program=("x",)), gpus=(gpu(),))
    old((), None)
    assert old.findings.engine is not None and old.findings.engine.devices[0].free == 22 * GIB
    without = finder_of(tmp_path, gpus=(gpu(),))
    without((), None)
    assert without.findings.unused_gpus == ("RTX 4090",)


def test_what_loaded_models_hold_of_gpus_counts_as_free(tmp_path: Path) -> None:
    devices = tuple(EngineDevice(name=f"CUDA{n}", model="RTX", total=24 * GIB, free=10 * GIB) for n in range(2))
    engine = EngineAbilities(program=("x",), devices=devices, knows_devices=True)
    finder = ModelFinder(memory=lambda: GIB, abilities=lambda _: engine, gpus=tuple, held=lambda: 20 * GIB)
    finder.room(None)
    assert finder.findings.engine is not None
    assert [each.free for each in finder.findings.engine.devices] == [24 * GIB, 16 * GIB]


def test_a_new_model_counts_when_it_no_longer_changes(tmp_path: Path) -> None:
    write_chat(tmp_path / "a.gguf")
    finder = finder_of()
    finder([tmp_path], None)
    new = tmp_path / "b.gguf"
    whole = write_chat(tmp_path / "elsewhere").read_bytes()
    new.write_bytes(whole[:-500])
    assert not finder.changed() and not finder.changed()
    new.write_bytes(whole)
    assert not finder.changed()
    assert [each.reason for each in finder.findings.left_out] == ["is new, and may still be being written"]
    new.write_bytes(whole + b"\0" * 64)
    assert not finder.changed()
    assert finder.changed() and names(finder) == ["a", "b"]
    assert not finder.changed()


def test_a_removed_model_goes_unless_it_is_loaded(tmp_path: Path) -> None:
    file = write_chat(tmp_path / "a.gguf")
    finder = finder_of()
    finder([tmp_path], None)
    finder.is_loaded = lambda name: name == "a"
    file.unlink()
    assert not finder.changed() and names(finder) == ["a"]
    finder.is_loaded = lambda _: False
    assert finder.changed() and names(finder) == []


def test_a_loaded_model_stays_as_it_is_while_its_files_change(tmp_path: Path) -> None:
    write_chat(tmp_path / "a.gguf")
    finder = finder_of()
    finder([tmp_path], None)
    finder.is_loaded = lambda _: True
    write_projector(tmp_path / "mmproj.gguf")
    assert not finder.changed() and not finder.changed()
    finder.is_loaded = lambda _: False
    assert not finder.changed() and names(finder) == ["a"]
    assert finder.changed()
    assert finder.findings.profiles[0].model.projector == tmp_path / "mmproj.gguf"


def test_other_folders_are_taken_at_once(tmp_path: Path) -> None:
    write_chat(tmp_path / "one/a.gguf")
    write_chat(tmp_path / "two/b.gguf")
    finder = finder_of()
    finder([tmp_path / "one"], None)
    assert finder([tmp_path / "one", tmp_path / "two"], None) is not None
    assert names(finder) == ["a", "b"]


def test_a_missing_engine_is_reported_elsewhere(tmp_path: Path) -> None:
    def fail(_: str | None) -> EngineAbilities:
        raise SupervisorError(Failure(kind="engine_missing", message="none"))

    write_chat(tmp_path / "a.gguf")
    finder = ModelFinder([tmp_path], memory=lambda: 8 * GIB, abilities=fail, gpus=tuple)
    assert finder((), None) is not None


def test_damaged_files_are_not_read_again_until_they_change(tmp_path: Path) -> None:
    damaged = tmp_path / "a.gguf"
    damaged.write_bytes(b"GGUF")
    finder = finder_of(tmp_path)
    finder((), None)
    before = finder.findings.left_out
    finder.changed()
    assert finder.findings.left_out == before
    write_chat(damaged)
    assert not finder.changed() and finder.changed()


def test_folders_of_safetensors_run_with_an_engine_that_takes_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "Model-8B", context=4096)
    write_chat(tmp_path / "a.gguf")

    def finder(installed: str | None) -> ModelFinder:
        return ModelFinder(
            [tmp_path], memory=lambda: 8 * GIB, abilities=lambda _: CPU, gpus=tuple, for_folders=lambda _: installed
        )

    subject = finder("vllm")
    found = subject((), None)
    assert found is not None
    assert (found["model-8b"].engine, found["model-8b"].context, found["a"].engine) == ("vllm", 4096, UNSET)
    assert "served by vllm" in subject.findings.profiles[0].fit.why
    default = finder("vllm")((), "vllm")
    assert default is not None
    assert (default["model-8b"].engine, default["a"].engine) == (UNSET, "llama-server")
    without = finder(None)
    assert list(without((), None) or ()) == ["a"]
    assert "none of which is installed" in without.findings.left_out[0].reason


def test_a_file_that_stays_unusable_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "old.gguf").write_bytes(b"<html>")
    finder = finder_of()
    finder([tmp_path], None)
    whole = write_chat(tmp_path / "elsewhere").read_bytes()
    for size in (100, 200, 300):
        (tmp_path / "slow.gguf").write_bytes(whole[:-size])  # another reason at each look
        finder.changed()
    assert caplog.messages == []
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    for _ in range(4):
        finder.changed()
    said = [each for each in caplog.messages if "page.gguf" in each]
    assert len(said) == 1 and said[0].startswith("left out: ") and "it is a web page" in said[0]
    assert not any("old.gguf" in each for each in caplog.messages)
    (tmp_path / "page.gguf").unlink()
    finder.changed()
    (tmp_path / "page.gguf").write_bytes(b"")
    for _ in range(3):
        finder.changed()
    assert sum("page.gguf is empty" in each for each in caplog.messages) == 1
