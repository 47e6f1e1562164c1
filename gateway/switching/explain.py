"""A supervisor's failure in words for a client: what happened and the way out, without paths or words that clients parse."""

from __future__ import annotations

import re

from hostler.supervisor.contract import Failure, FailureKind

_WHAT: dict[FailureKind, str] = {
    "file_missing": "its file is not there",
    "not_gguf": "its file is not a GGUF model",
    "model_damaged": "its file is damaged or incomplete",
    "unknown_architecture": "the engine does not know its architecture; use a newer engine",
    "port_taken": "the engine's port is taken by another program",
    "out_of_memory": "there was not enough memory; make the profile smaller or stop other programs",
    "engine_missing": "the engine program is not installed on the host",
    "bad_argument": "the engine does not take one of the profile's arguments",
    "killed": "the engine was killed",
    "exited": "the engine ended",
    "start_timeout": "it did not get ready in time",
    "unresponsive": "the engine answered nothing any more",
    "does_not_fit": "it does not fit into the host's memory budget",
    "source_unavailable": "its file could not be fetched",
    "cancelled": "the start was cancelled",
}

_PATH = re.compile(r"(?:[A-Za-z]:)?(?:/[^\s/'\":,;]+)*/([^\s/'\":,;]+)")
# Some clients take these words in an error for an overflow of the conversation, and begin to cut it.
_MISREAD = re.compile(r"context|token|max_length|window", re.IGNORECASE)
_LINES_SHOWN = 3
_LINE_LENGTH = 160


def explain(model: str, host: str, failure: Failure | None) -> str:
    """Why `model` could not be loaded on `host`, with the engine's last words as far as they may be shown."""
    if failure is None:
        return f"{model} could not be loaded on {host}; its log there tells more (`hostler status`)"
    what = _WHAT[failure.kind]
    said = [
        line
        for line in (_PATH.sub(r"\1", text).strip()[:_LINE_LENGTH] for text in failure.lines if text.strip())
        if not _MISREAD.search(line)
    ]
    words = f"{model} could not be loaded on {host}: {what}"
    if said:
        words += "; the engine said last: " + " | ".join(said[-_LINES_SHOWN:])
    return words
