"""Models named by repository and quantization: which file that is, said by the hub and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.scripted_hub import ScriptedHub, hub_environment, running_hub

from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import cached, fetch_sync
from hostler.profiles.schema import Profile
from hostler.profiles.sources import SourceError

REPOSITORY = "org/Tiny-GGUF"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    with running_hub() as hub:
        for name, value in hub_environment(hub, str(tmp_path / "home")).items():
            monkeypatch.setenv(name, value)
        hub.add(REPOSITORY, "Tiny-Q4_K_M.gguf", b"four bits")
        hub.add(REPOSITORY, "Tiny-Q8_0-00001-of-00002.gguf", b"eight")
        hub.add(REPOSITORY, "Tiny-Q8_0-00002-of-00002.gguf", b" bits")
        yield hub


def wanted(quantization: str) -> Profile:
    return Profile(name="tiny", model=f"hf:{REPOSITORY}:{quantization}")


def fetched(profile: Profile, cache: Path) -> Path:
    return fetch_sync(profile, cache, lambda _: None, Cancellation())


def test_the_hub_says_which_file_it_is(hub: ScriptedHub, tmp_path: Path) -> None:
    assert cached(wanted("Q4_K_M"), cache_dir=tmp_path) is None
    path = fetched(wanted("Q4_K_M"), tmp_path)
    assert path.name == "Tiny-Q4_K_M.gguf"
    assert path.read_bytes() == b"four bits"


def test_all_parts_of_a_split_model_are_fetched(hub: ScriptedHub, tmp_path: Path) -> None:
    path = fetched(wanted("q8_0"), tmp_path)
    assert path.name == "Tiny-Q8_0-00001-of-00002.gguf"
    assert (path.parent / "Tiny-Q8_0-00002-of-00002.gguf").read_bytes() == b" bits"


def test_a_model_that_is_here_needs_no_network(hub: ScriptedHub, tmp_path: Path) -> None:
    path = fetched(wanted("Q4_K_M"), tmp_path)
    hub.requests.clear()
    assert cached(wanted("Q4_K_M"), cache_dir=tmp_path) == path
    assert fetched(wanted("Q4_K_M"), tmp_path) == path
    assert hub.requests == []


def test_a_file_that_was_renamed_before_it_was_fetched_again_is_found(hub: ScriptedHub, tmp_path: Path) -> None:
    fetched(wanted("Q4_K_M"), tmp_path).unlink()
    del hub.files[f"{REPOSITORY}/Tiny-Q4_K_M.gguf"]
    hub.add(REPOSITORY, "Tiny-v2-Q4_K_M.gguf", b"better bits")
    assert cached(wanted("Q4_K_M"), cache_dir=tmp_path) is None
    assert fetched(wanted("Q4_K_M"), tmp_path).read_bytes() == b"better bits"
    assert cached(wanted("Q4_K_M"), cache_dir=tmp_path) is not None


def test_a_wrong_quantization_is_answered_with_those_that_exist(hub: ScriptedHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no Q5_K_M; it has: Q4_K_M, Q8_0"):
        fetched(wanted("Q5_K_M"), tmp_path)
    with pytest.raises(SourceError, match="names no quantization; it has: Q4_K_M, Q8_0"):
        fetched(wanted("latest"), tmp_path)


def test_the_checksum_of_the_profile_counts(hub: ScriptedHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected 0000"):
        fetched(Profile(name="tiny", model=f"hf:{REPOSITORY}:Q4_K_M", sha256="0" * 64), tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"file": 1}', b'{"file": "../../etc/passwd"}', b"\xff"])
def test_a_damaged_memory_is_asked_anew(hub: ScriptedHub, tmp_path: Path, content: bytes) -> None:
    fetched(wanted("Q4_K_M"), tmp_path)
    [kept] = tmp_path.rglob("Q4_K_M.json")
    kept.write_bytes(content)
    assert cached(wanted("Q4_K_M"), cache_dir=tmp_path) is None
    assert fetched(wanted("Q4_K_M"), tmp_path).read_bytes() == b"four bits"


def test_what_was_known_is_used_while_the_hub_is_away(
    hub: ScriptedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetched(wanted("Q4_K_M"), tmp_path)
    # Where the hub's own library keeps it.
    other = tmp_path / "hub" / "models--org--Tiny-GGUF" / "snapshots" / "main" / path.name
    other.parent.mkdir(parents=True)
    (tmp_path / "blob").write_bytes(path.read_bytes())
    other.symlink_to(tmp_path / "blob")
    path.unlink()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.gated.add(REPOSITORY)
    hub.requests.clear()
    assert fetched(wanted("Q4_K_M"), tmp_path) == other
    assert hub.requests
