"""Downloads and how their progress is logged."""

from __future__ import annotations

import logging

import pytest

from hostler.gateway.cli.downloads import log_progress
from hostler.profiles.sources import FetchProgress


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
