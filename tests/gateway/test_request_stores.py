"""What is kept of requests, as the settings say."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from hostler.gateway.gateway_settings import RecordingSettings, ResponsesSettings, StreamSettings, TracingSettings
from hostler.gateway.request_stores import response_store, stream_store, tracer, transcripts


def test_what_is_off_has_no_store(tmp_path: Path) -> None:
    assert response_store(ResponsesSettings(store="off")) is None
    assert stream_store(StreamSettings(resume=False)) is None
    assert transcripts(RecordingSettings(file=str(tmp_path / "none"))) is None
    assert tracer(TracingSettings(), lambda: 0.0) is None


def test_settings_become_limits(tmp_path: Path) -> None:
    streams = stream_store(StreamSettings(keep_s=1.0, detached_s=2.0))
    assert streams is not None
    limits = streams.limits
    assert (limits.keep_s, limits.detached_s, limits.max_stream, limits.max_size) == (1.0, 2.0, 4 * 2**20, 64 * 2**20)
    responses = response_store(ResponsesSettings(store="disk", file=str(tmp_path / "r")))
    assert responses is not None
    assert responses.file == tmp_path / "r"


def test_records_that_are_left_over_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "recorded"
    file.touch()
    with caplog.at_level(logging.WARNING):
        assert transcripts(RecordingSettings(file=str(file))) is None
    assert "still contains recorded prompts" in caplog.text
