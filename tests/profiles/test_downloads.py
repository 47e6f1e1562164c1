"""What every download needs: cancellation, and bytes written with their checksum."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.profiles.downloads import Cancellation, DownloadCancelled, write_blocks
from hostler.profiles.sources import SourceError


def test_writes_the_blocks_and_returns_their_checksum(tmp_path: Path, content: bytes, sha256: str) -> None:
    reported: list[int] = []
    blocks = [content[:1000], content[1000:]]
    assert write_blocks(blocks, tmp_path / "file", len(content), reported.append, Cancellation()) == sha256
    assert (tmp_path / "file").read_bytes() == content
    assert reported == [1000, len(content)]


@pytest.mark.parametrize("total", [3, 5])
def test_rejects_another_size_than_announced(tmp_path: Path, total: int) -> None:
    with pytest.raises(SourceError, match=f"received 4 bytes instead of {total}"):
        write_blocks([b"ab", b"cd"], tmp_path / "file", total, lambda _: None, Cancellation())


def test_refuses_what_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not enough disk space"):
        write_blocks([], tmp_path / "file", 10**18, lambda _: None, Cancellation())


def test_cancelling_stops_between_two_blocks(tmp_path: Path) -> None:
    cancellation = Cancellation()

    def blocks() -> Iterator[bytes]:
        yield b"one"
        cancellation.cancel()
        yield b"two"

    with pytest.raises(DownloadCancelled):
        write_blocks(blocks(), tmp_path / "file", None, lambda _: None, cancellation)


@pytest.mark.parametrize("cancelled_before", [True, False])
def test_cancelling_ends_the_read_of_a_watched_socket(cancelled_before: bool) -> None:
    cancellation = Cancellation()
    one, other = socket.socketpair()
    with one, other:
        if cancelled_before:
            cancellation.cancel()
        cancellation.watch(one)
        cancellation.cancel()
        assert one.recv(1) == b""
