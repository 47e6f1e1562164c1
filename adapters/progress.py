"""The progress line for clients that wait, the same in every protocol that has a place for it."""

from __future__ import annotations

from hostler.adapters.canonical import Progress

#: Marks lines that come from the gateway and not from the model.
PREFIX = "[hostler] "


def progress_line(progress: Progress) -> str:
    """For example `loading b: 40% (12 s left)`."""
    line = f"{progress.phase} {_one_line(progress.model)}"
    if progress.phase == "queued" and progress.position is not None:
        line += f": position {progress.position}"
    elif progress.percent is not None:
        line += f": {progress.percent:.0f}%"
    if progress.eta_s is not None:
        line += f" ({max(progress.eta_s, 0):.0f} s left)"
    return line


def _one_line(text: str) -> str:
    return "".join(char for char in text[:200] if char.isprintable())
