"""Command lines of llama-server as profiles."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.importing.llama_command import LlamaCommand, is_llama_server, read_arguments
from hostler.profiles.schema import ModelFacts


def read(words: str, env: dict[str, str] | None = None, facts: ModelFacts | None = None) -> LlamaCommand:
    return read_arguments(words.split(), env or {}, path_of=lambda path: f"/m/{path}", facts_of=lambda _: facts)


def profile(words: str, **more: Any) -> Any:
    return dict(read(words, **more).profile)


@pytest.mark.parametrize(
    ("program", "expected"),
    [("llama-server", True), ("/opt/llama-server-b12", True), ("C:\\llama\\llama-server.exe", True), ("vllm", False)],
)
def test_the_program_is_recognised_by_its_name(program: str, expected: bool) -> None:
    assert is_llama_server(program) is expected


def test_arguments_that_a_profile_has_are_its_keys() -> None:
    assert profile("-m x.gguf -c 8192 -np 2 -b 256 -t 4 -ngl 33 --mmproj p.gguf -md d.gguf --cache-ram 64") == {
        "model": "/m/x.gguf", "mmproj": "/m/p.gguf", "draft": "/m/d.gguf", "parallel": 2, "context": 4096, "batch": 256,
        "threads": 4, "cache_ram_mib": 64, "gpu_layers": 33,
    }  # fmt: skip


def test_other_arguments_are_kept_in_order() -> None:
    assert profile("-m x.gguf --jinja -c 1 --temp 0.5")["args"] == ["--jinja", "--temp", "0.5"]


def test_what_the_supervisor_sets_is_left_out() -> None:
    command = read("-m x.gguf -c 1 --host 0.0.0.0 --port 80 --api-key secret --no-slots")
    assert "args" not in command.profile
    assert [change.split()[0] for change in command.changes] == ["--host", "--port", "--api-key", "--no-slots"]
    assert "secret" not in "".join(command.changes)


@pytest.mark.parametrize(("value", "expected"), [("-1", "auto"), ("-2", "all"), ("all", "all"), ("0", 0)])
def test_layers_have_their_words(value: str, expected: object) -> None:
    assert profile(f"-m x.gguf -c 1 -ngl {value}")["gpu_layers"] == expected


def test_variables_that_stand_for_arguments_are_read() -> None:
    command = read("-m x.gguf", env={"LLAMA_ARG_CTX_SIZE": "2048", "LLAMA_API_KEY": "k", "OTHER": "1"})
    assert command.profile["context"] == 2048 and command.env == {"OTHER": "1"}


def test_the_context_of_the_file_is_the_default() -> None:
    facts = ModelFacts(training_context=32768, capabilities=("embedding",))
    found = profile("-m x.gguf -c 0", facts=facts)
    assert found["context"] == 32768 and found["embeddings"] is True


def test_a_number_that_is_none_is_left_out_and_named() -> None:
    command = read("-m x.gguf -c many")
    assert "context" not in command.profile and "'many' is no number" in " ".join(command.changes)


def test_a_file_of_a_repository_is_a_source() -> None:
    assert profile("-hf org/repo --hf-file x.gguf")["model"] == "hf:org/repo/x.gguf"
    assert read("-hf org/repo:Q4").repository == "org/repo:Q4"
