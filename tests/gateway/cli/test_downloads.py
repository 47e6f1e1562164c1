"""Downloads and how their progress is logged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fakes.scripted_hub import running_hub

from hostler.gateway.cli.downloads import download_archive, log_progress
from hostler.profiles.sources import FetchProgress, SourceError


def test_the_beginning_every_ten_percent_and_the_end_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = log_progress()
    report(FetchProgress(file="m.gguf", phase="waiting"))
    for done in range(101):
        report(FetchProgress(file="m.gguf", phase="downloading", completed=done * 10**6, total=100 * 10**6))
    report(FetchProgress(file="m.gguf", phase="done", completed=10**8, total=10**8))
    lines = caplog.messages
    assert lines[:2] == ["m.gguf: waiting", "m.gguf: downloading 0 of 100 MB"]
    assert lines[-1] == "m.gguf: done 100 of 100 MB"
    assert len(lines) == 13


def test_an_archive_is_downloaded_with_a_limit_and_a_checksum(tmp_path: Path) -> None:
    with running_hub() as hub:
        checksum = hub.add("org/engines", "llama.zip", b"x" * 1000)
        url = f"{hub.url}/org/engines/resolve/main/llama.zip"
        assert download_archive(url, tmp_path, sha256=checksum, limit=1000).read_bytes() == b"x" * 1000
        with pytest.raises(SourceError, match="is larger than 999 bytes"):
            download_archive(url, tmp_path, sha256=None, limit=999)
        with pytest.raises(SourceError, match=f"has the SHA-256 {checksum}, expected {'0' * 64}"):
            download_archive(url, tmp_path, sha256="0" * 64, limit=1000)


@pytest.mark.parametrize("address", ["http://example.com/llama.zip", "/srv/llama.zip", "hf:org/repo/llama.zip"])
def test_only_encrypted_addresses_are_asked(tmp_path: Path, address: str) -> None:
    with pytest.raises(SourceError, match="https"):
        download_archive(address, tmp_path, sha256=None, limit=1000)
