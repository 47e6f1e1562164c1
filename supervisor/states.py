"""The states of an engine's process as a table, and explanations of its exit. Pure functions."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from hostler.supervisor.contract import Failure, FailureKind, State

#: How many log lines a failure carries.
LINES_KEPT: Final = 20

_PREFIX: Final = re.compile(r"^\d+\.\d\d\.\d\d\d\.\d\d\d ([A-Z]) (?:\S+\s+\S+:\s)?\s*")

#: The first pattern that any line matches decides: the most specific ones come first.
_PATTERNS: Final[tuple[tuple[FailureKind, re.Pattern[str], str], ...]] = (
    ("engine_missing", re.compile(r"^hostler: (?:line )?\d+: (?:exec: )?(?P<what>.+)"), "the engine cannot be started: {what}"),
    ("bad_argument", re.compile(r"error: invalid argument: (?P<what>.+)"), "the engine does not know the argument {what}"),
    ("bad_argument", re.compile(r"error while handling argument (?P<what>.+)"), "the engine refuses the argument {what}"),
    ("port_taken", re.compile(r"couldn't bind HTTP server socket|[Aa]ddress already in use"), "its port is in use by another program"),
    ("unknown_architecture", re.compile(r"unknown model architecture: '?(?P<what>[^']*)'?"),
     "this engine does not know the model's architecture '{what}'; a newer engine may"),
    ("file_missing", re.compile(r"failed to open GGUF file '(?P<what>[^']*)'|(?P<other>\S+\.gguf)'?: No such file"),
     "the model file {what} cannot be opened"),
    ("not_gguf", re.compile(r"invalid magic characters|failed to read magic"), "the model file is not a GGUF file"),
    ("out_of_memory", re.compile(
        r"insufficient memory|out of memory|failed to allocate (?:buffer|compute)|unable to allocate|bad_alloc|MemoryError"),
     "there is not enough memory for the model and its context"),
    ("model_damaged", re.compile(
        r"model is corrupted or incomplete|failed to read key-value pairs|failed to read tensor|not within the file bounds"
        r"|invalid model: "), "the model file is damaged or incomplete"),
)  # fmt: skip


#: By number: not every system has a name for each.
_SIGNAL_HINTS: Final[Mapping[int, str]] = {
    9: " (the system was probably short of memory)",
    4: " (the program was built for another processor)",
}


def explain_exit(model: str, exit_code: int | None, lines: Sequence[str], *, ready: bool = False) -> Failure:
    """Why the engine of `model` exited: from a known log line, else from its exit code and its first error line.

    `ready`: it had been serving. Then earlier lines explain nothing, and only the exit code counts.
    """
    kept = tuple(lines[-LINES_KEPT:])
    if not ready:
        for kind, pattern, sentence in _PATTERNS:
            for line in lines:
                found = pattern.search(line)
                if found:
                    what = next((value for value in found.groups() if value), "")
                    message = f'model "{model}" does not start: {sentence.format(what=what)}'
                    return Failure(kind=kind, message=message, lines=kept, exit_code=exit_code)
    if exit_code is not None and exit_code < 0:
        hint = _SIGNAL_HINTS.get(-exit_code, "")
        message = f'the engine of model "{model}" was killed by {_signal_name(-exit_code)}{hint}'
        return Failure(kind="killed", message=message, lines=kept, exit_code=exit_code)
    reason = error_line(lines)
    message = f'the engine of model "{model}" ended with exit code {exit_code}' + (f": {reason}" if reason else "")
    return Failure(kind="exited", message=message, lines=kept, exit_code=exit_code)


def error_line(lines: Sequence[str]) -> str:
    """The first error line in llama.cpp's format, else the last line that is not empty."""
    for line in lines:
        found = _PREFIX.match(line)
        if found and found[1] == "E":
            return _shorten(line[found.end() :])
    for line in reversed(lines):
        if line.strip() and not _PREFIX.match(line):
            return _shorten(line)
    return ""


def _shorten(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 300 else line[:297] + "..."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


#: `backoff` and `failed` follow a failure and return to `stopped` when their time is over.
TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    "stopped": frozenset({"starting"}),
    "starting": frozenset({"ready", "stopping", "backoff", "failed"}),
    "ready": frozenset({"stopping", "stopped", "backoff", "failed"}),
    "stopping": frozenset({"stopped", "backoff", "failed"}),
    "backoff": frozenset({"starting", "stopped"}),
    "failed": frozenset({"stopped"}),
}


class ImpossibleTransition(AssertionError):
    """A state change that the table does not allow: a bug in this program."""


def advance(current: State, following: State) -> State:
    """`following`, if the table allows it after `current`. Raises `ImpossibleTransition`."""
    if following not in TRANSITIONS[current]:
        raise ImpossibleTransition(f"a process cannot go from {current} to {following}")
    return following


def after_failure(failures: int, max_failures: int) -> State:
    """The state after `failures` failures in a row."""
    return "failed" if failures >= max_failures else "backoff"


def backoff_delay_s(failures: int, first_s: float, longest_s: float) -> float:
    """The delay after that many failures in a row: it doubles, up to `longest_s`."""
    return min(longest_s, first_s * 2.0 ** min(failures - 1, 30)) if failures > 0 else 0.0
