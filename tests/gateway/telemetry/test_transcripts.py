"""Transcripts: bounded in size and age, and dropped when the disk is too slow."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from hostler.gateway.telemetry.transcripts import Transcript, TranscriptLimits, Transcripts

pytestmark = pytest.mark.anyio


def transcript(number: int, at: float = 0.0, size: int = 1000) -> Transcript:
    return Transcript(id=f"req-{number}", at=at, request="?" * size, answer="!")


async def kept(contents: Transcripts, numbers: range) -> list[int]:
    return [number for number in numbers if await contents.find(f"req-{number}")]


async def test_only_the_newest_transcripts_are_kept_by_size_and_age(tmp_path: Path) -> None:
    now = 1000.0
    file = tmp_path / "contents.sqlite3"
    contents = Transcripts(file, TranscriptLimits(max_bytes=5000, max_age_s=100), wall=lambda: now)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(contents.run)
        for number in range(20):
            contents.add(transcript(number, at=now))
        assert await kept(contents, range(20)) == [16, 17, 18, 19]
        contents.add(transcript(20, at=now))
        now = 1099.0
        assert await kept(contents, range(21)) == [17, 18, 19, 20]
        now = 1101.0
        assert await kept(contents, range(21)) == []
        tasks.cancel_scope.cancel()
    assert b"????" not in file.read_bytes()


async def test_transcripts_are_dropped_when_the_disk_is_too_slow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = Transcripts(tmp_path / "contents.sqlite3", TranscriptLimits(max_bytes=2**30, max_age_s=100))
    for number in range(100):
        contents.add(transcript(number, size=1024**2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(contents.run)
        await contents.flush()
        tasks.cancel_scope.cancel()
    assert "68 requests not recorded" in caplog.text


async def test_transcripts_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    file = tmp_path / "contents.sqlite3"
    transcripts = Transcripts(file, TranscriptLimits(max_bytes=5000, max_age_s=100), wall=lambda: 1.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transcripts.run)
        await transcripts.flush()
        with closing(sqlite3.connect(file)) as database, database:
            body = b'{"id":"req-1","at":1.0,"request":"?","answer":"!","cut":["answer"]}'
            database.execute("INSERT INTO contents (id, at, size, body) VALUES ('req-1', 1.0, 60, ?)", (body,))
        (found,) = await transcripts.find("req-1")
        tasks.cancel_scope.cancel()
    assert (found.answer, found.truncated) == ("!", ("answer",))
