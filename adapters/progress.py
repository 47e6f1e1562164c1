"""The progress line for clients that wait, the same in every protocol that has a place for it."""

from __future__ import annotations

from hostler.adapters.canonical import Progress

#: Marks lines that come from the gateway and not from the model.
PREFIX = "[hostler] "

# From this percentage on, only the time says something: the last steps are not part of it.
_NEARLY = 98.5
_STOPPING = frozenset({"saving", "stopping"})


def progress_line(progress: Progress) -> str:
    """For example `loading b: 40% (12 s left)`."""
    line = _activity(progress)
    if progress.phase == "queued" and progress.position is not None:
        line += f": position {progress.position}"
    elif progress.overdue:
        return f"{line}: longer than usual: {_elapsed(progress.elapsed_s)}"
    elif progress.percent is not None and progress.percent < _NEARLY:
        line += f": {progress.percent:.0f}%"
    if progress.overdue:
        return f"{line}, longer than usual: {_elapsed(progress.elapsed_s)}"
    if progress.eta_s is not None:
        return f"{line} ({_seconds(progress.eta_s)} left)"
    return line if progress.elapsed_s is None else f"{line} ({_elapsed(progress.elapsed_s)} so far)"


class ProgressLines:
    """The progress lines of one response, without repetitions."""

    def __init__(self) -> None:
        self._last = ""

    def next(self, progress: Progress) -> str:
        """The line with its prefix; empty if it would repeat the last one."""
        line = PREFIX + progress_line(progress)
        if line == self._last:
            return ""
        self._last = line
        return line


def _activity(progress: Progress) -> str:
    model, before = _one_line(progress.model), _one_line(progress.from_model or "")
    if progress.phase == "reading the prompt":
        return f"{progress.phase} for {model}"
    if before and before != model:
        if progress.phase in _STOPPING:
            return f"{progress.phase} {before} for {model}"
        if progress.phase == "draining":
            return f"waiting for the answers of {before} before {model}"
    return f"{progress.phase} {model}"


def _seconds(seconds: float) -> str:
    return f"{max(seconds, 0.0):.0f} s"


def _elapsed(seconds: float | None) -> str:
    """With tenths while it is short: each line says something new."""
    seconds = max(seconds or 0.0, 0.0)
    return f"{seconds:.1f} s" if seconds < 10.0 else f"{seconds:.0f} s"


def _one_line(text: str) -> str:
    return "".join(char for char in text[:200] if char.isprintable())
