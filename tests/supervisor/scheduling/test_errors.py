"""Why a model is not available, in words that no client misreads."""

from __future__ import annotations

import pytest

from hostler.supervisor.contract import Failure
from hostler.supervisor.scheduling.errors import load_failure_message


@pytest.mark.parametrize(
    "line",
    [
        "failed to create context",
        "prompt has too many tokens",
        "n_ctx: Context size 4096",
        "max_length is 10",
        "window of 512",
    ],
)
def test_words_that_clients_read_as_a_context_overflow_are_left_out(line: str) -> None:
    message = load_failure_message("a", "pc", Failure(kind="exited", message="x", lines=("before", line, "after")))
    assert "before | after" in message
    assert line not in message


def test_paths_are_shortened_to_file_names() -> None:
    message = load_failure_message(
        "a", "pc", Failure(kind="exited", message="x", lines=("cannot open /srv/secret/x.gguf here",))
    )
    assert "cannot open x.gguf here" in message and "srv" not in message
