"""The progress line for clients that wait."""

from __future__ import annotations

import pytest

from hostler.adapters.canonical import Progress
from hostler.adapters.progress import PREFIX, ProgressLines, progress_line


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(phase="queued", model="b", position=2), "queued b: position 2"),
        (Progress(phase="loading", model="b", percent=40.2, eta_s=11.6), "loading b: 40% (12 s left)"),
        (Progress(phase="starting", model="b", eta_s=-3.0), "starting b (0 s left)"),
        (Progress(phase="ready", model="b\n\x1b[31m"), "ready b[31m"),
        (Progress(phase="loading", model="b", elapsed_s=12.4), "loading b (12 s so far)"),
        (Progress(phase="loading", model="b", percent=99.0, eta_s=0.4), "loading b (0 s left)"),
        (Progress(phase="loading", model="b", elapsed_s=14.0, overdue=True), "loading b: longer than usual: 14 s"),
        (
            Progress(phase="queued", model="b", position=2, elapsed_s=14.0, overdue=True),
            "queued b: position 2, longer than usual: 14 s",
        ),
        (Progress(phase="stopping", model="b", from_model="a", eta_s=9.0), "stopping a for b (9 s left)"),
        (Progress(phase="saving", model="b", from_model="a"), "saving a for b"),
        (Progress(phase="stopping", model="b"), "stopping b"),
        (Progress(phase="draining", model="b", from_model="a"), "waiting for the answers of a before b"),
        (Progress(phase="loading", model="b", from_model="a"), "loading b"),
        (
            Progress(phase="reading the prompt", model="b", percent=40.0, eta_s=7.0),
            "reading the prompt for b: 40% (7 s left)",
        ),
    ],
)
def test_the_line_has_what_is_known(progress: Progress, line: str) -> None:
    assert progress_line(progress) == line


def test_a_line_is_not_repeated() -> None:
    lines, loading = ProgressLines(), Progress(phase="loading", model="b", eta_s=5.0)
    assert lines.next(loading) == f"{PREFIX}loading b (5 s left)"
    assert lines.next(loading) == ""
    assert lines.next(Progress(phase="loading", model="b", eta_s=4.0)) == f"{PREFIX}loading b (4 s left)"
    assert lines.next(loading) != ""
