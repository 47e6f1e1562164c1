"""The progress line for clients that wait."""

from __future__ import annotations

import pytest

from hostler.adapters.canonical import Progress
from hostler.adapters.progress import progress_line


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(phase="queued", model="b", position=2), "queued b: position 2"),
        (Progress(phase="loading", model="b", percent=40.2, eta_s=11.6), "loading b: 40% (12 s left)"),
        (Progress(phase="starting", model="b", eta_s=-3.0), "starting b (0 s left)"),
        (Progress(phase="ready", model="b\n\x1b[31m"), "ready b[31m"),
    ],
)
def test_the_line_has_what_is_known(progress: Progress, line: str) -> None:
    assert progress_line(progress) == line
