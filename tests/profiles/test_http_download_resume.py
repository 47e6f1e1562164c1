"""Downloads that break, wait, and go on: from a hub that is scripted to fail."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.downloads import stored_files, tiny_profile
from fakes.scripted_hub import TOKEN, ScriptedHub, hub_environment, running_hub

from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import fetch_sync
from hostler.profiles.sources import FetchProgress, SourceError

CONTENT = os.urandom(3_000_000)
MODEL = "hf:org/repo/m.gguf"


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    """A hub with one file."""
    with running_hub() as hub:
        for name, value in hub_environment(hub, str(tmp_path / "huggingface")).items():
            monkeypatch.setenv(name, value)
        hub.add("org/repo", "m.gguf", CONTENT)
        yield hub


def get(tmp_path: Path, phases: list[FetchProgress] | None = None, sha256: str | None = None) -> Path:
    report = [] if phases is None else phases
    return fetch_sync(tiny_profile(MODEL, sha256), tmp_path / "c", report.append, Cancellation())


def ranges(hub: ScriptedHub) -> list[str | None]:
    return [wanted for _, path, _, wanted in hub.requests if path.startswith("/cdn/")]


def test_a_cut_connection_is_continued_where_it_broke(origin: ScriptedHub, tmp_path: Path) -> None:
    origin.cuts = [1_000_000, 500_000]
    assert get(tmp_path).read_bytes() == CONTENT
    first, second, third = ranges(origin)
    assert first is None
    assert second == "bytes=1000000-" and third == "bytes=1500000-"
    assert stored_files(tmp_path / "c") == ["models/hf/org/repo/m.gguf"]


def test_the_next_attempt_continues_what_the_last_one_left(origin: ScriptedHub, tmp_path: Path) -> None:
    origin.cuts = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(SourceError, match="closed the connection after 1000000 of 3000000 bytes"):
        get(tmp_path)
    origin.cuts, seen = [], len(origin.requests)
    assert get(tmp_path).read_bytes() == CONTENT
    assert [wanted for *_, wanted in origin.requests[seen:]] == ["bytes=1000000-", "bytes=1000000-"]


def test_a_file_that_changed_meanwhile_is_downloaded_anew(origin: ScriptedHub, tmp_path: Path) -> None:
    origin.cuts = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(SourceError):
        get(tmp_path)
    origin.cuts = []
    origin.add("org/repo", "m.gguf", CONTENT[::-1])
    assert get(tmp_path).read_bytes() == CONTENT[::-1]


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(origin: ScriptedHub, tmp_path: Path) -> None:
    origin.announced["org/repo/m.gguf"] = "0" * 64
    with pytest.raises(SourceError, match="but the server announced 0000"):
        get(tmp_path)
    assert stored_files(tmp_path / "c") == []
    origin.announced.clear()
    with pytest.raises(SourceError, match="expected 1111"):
        get(tmp_path, sha256="1" * 64)
    assert stored_files(tmp_path / "c") == []
    assert get(tmp_path, sha256=hashlib.sha256(CONTENT).hexdigest()).read_bytes() == CONTENT


@pytest.mark.parametrize("after", ["0", "Mon, 30 Nov 2020 06:42:03 GMT"])
def test_a_server_that_asks_to_wait_is_asked_again(origin: ScriptedHub, tmp_path: Path, after: str) -> None:
    origin.refusals = [(429, {"Retry-After": after}), (503, {"Retry-After": after})]
    phases: list[FetchProgress] = []
    assert get(tmp_path, phases).read_bytes() == CONTENT
    assert [each.phase for each in phases[:2]] == ["waiting", "waiting"]


def test_a_server_that_asks_to_wait_for_long_or_for_ever_is_an_error(origin: ScriptedHub, tmp_path: Path) -> None:
    origin.refusals = [(429, {"Retry-After": "86400"})]
    with pytest.raises(SourceError, match="asks to wait 86400 s before the next request"):
        get(tmp_path)
    origin.refusals, phases = [(429, {"Retry-After": "0"})] * 9, list[FetchProgress]()
    with pytest.raises(SourceError, match="allows no more requests for now"):
        get(tmp_path, phases)
    assert len(origin.requests) == 1 + len(phases) + 1  # each wait is followed by a request
    origin.refusals = [(503, {"Retry-After": "0"})] * 9
    with pytest.raises(SourceError, match="is not available for now"):
        get(tmp_path)


def test_a_gated_repository_needs_the_token_of_the_usual_places(origin: ScriptedHub, tmp_path: Path) -> None:
    origin.gated.add("org/repo")
    with pytest.raises(SourceError, match=r"401 Unauthorized \(the model is gated: accept its terms on "):
        get(tmp_path)
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface/token").write_text(f"{TOKEN}\n")
    assert get(tmp_path).read_bytes() == CONTENT
    # Never to the host of the file itself.
    assert {authorization for host, _, authorization, _ in origin.requests if "localhost" in host} == {None}
