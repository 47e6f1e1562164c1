"""Every spelling of a model in a registry."""

from __future__ import annotations

import pytest

from hostler.profiles.hub_reference import HubReference, is_registry_name, parse_reference
from hostler.profiles.sources import SourceError

REPOSITORY = HubReference(registry="hub", repository="org/Repo-GGUF", tag="Q4_K_M")


@pytest.mark.parametrize(
    "text",
    [
        "hf.co/org/Repo-GGUF:Q4_K_M",
        "huggingface.co/org/Repo-GGUF:Q4_K_M",
        "https://huggingface.co/org/Repo-GGUF:Q4_K_M",
        "hf:org/Repo-GGUF:Q4_K_M",
        "hf://org/Repo-GGUF:Q4_K_M",
        "-hf org/Repo-GGUF:Q4_K_M",
        "--hf-repo  org/Repo-GGUF:Q4_K_M",
        "org/Repo-GGUF:Q4_K_M",
    ],
)
def test_spellings_of_a_repository(text: str) -> None:
    assert parse_reference(text) == REPOSITORY
    assert REPOSITORY.name == "hf.co/org/Repo-GGUF:Q4_K_M"


@pytest.mark.parametrize(
    ("text", "revision", "file"),
    [
        ("hf:org/Repo-GGUF/a/b-Q4.gguf", "main", "a/b-Q4.gguf"),
        ("hf:org/Repo-GGUF@v1/b.gguf", "v1", "b.gguf"),
        ("https://huggingface.co/org/Repo-GGUF/blob/main/b.gguf?download=true", "main", "b.gguf"),
        ("https://huggingface.co/org/Repo-GGUF/resolve/v1/b.gguf", "v1", "b.gguf"),
        ("https://huggingface.co/org/Repo-GGUF/tree/v1", "v1", ""),
        ("hf.co/org/Repo-GGUF/", "main", ""),
    ],
)
def test_a_file_and_a_revision_may_be_named(text: str, revision: str, file: str) -> None:
    found = parse_reference(text)
    assert found == HubReference(registry="hub", repository="org/Repo-GGUF", revision=revision, file=file)


@pytest.mark.parametrize(
    ("text", "repository", "tag", "name"),
    [
        ("qwen3:8b", "library/qwen3", "8b", "qwen3:8b"),
        ("ollama:qwen3", "library/qwen3", "latest", "qwen3:latest"),
        ("registry.ollama.ai/library/qwen3:8b", "library/qwen3", "8b", "qwen3:8b"),
        ("https://ollama.com/someone/model:q8", "someone/model", "q8", "someone/model:q8"),
    ],
)
def test_spellings_of_ollamas_registry(text: str, repository: str, tag: str, name: str) -> None:
    found = parse_reference(text)
    assert found == HubReference(registry="ollama", repository=repository, tag=tag)
    assert found is not None and found.name == name


def test_clients_of_ollama_mean_its_registry() -> None:
    assert is_registry_name("someone/model") and is_registry_name("hf.co/org/repo") and is_registry_name("qwen3:8b")
    assert not is_registry_name("qwen3") and not is_registry_name("hf.co/org")
    found = parse_reference("someone/model", by_ollama=True)
    assert found == HubReference(registry="ollama", repository="someone/model", tag="latest")
    assert parse_reference("hf.co/org/Repo-GGUF:Q4_K_M", by_ollama=True) == REPOSITORY


@pytest.mark.parametrize("text", ["qwen3", "qwen3 8b instruct", "llama-3.2"])
def test_other_words_are_searched_for(text: str) -> None:
    assert parse_reference(text) is None


@pytest.mark.parametrize("text", ["hf.co/org", "hf:org/../x", "hf.co/org/repo/a.txt", "ollama:", "x:y:z"])
def test_what_begins_like_a_name_and_is_none_is_an_error(text: str) -> None:
    with pytest.raises(SourceError, match="does not have the form"):
        parse_reference(text)
