"""The table of states, and what the exit of an engine means."""

from __future__ import annotations

from typing import get_args

import pytest

from hostler.supervisor.contract import State
from hostler.supervisor.states import (
    LINES_KEPT,
    TRANSITIONS,
    ImpossibleTransition,
    advance,
    after_failure,
    backoff_delay_s,
    error_line,
    explain_exit,
)


def test_every_state_has_a_row_and_every_row_leads_somewhere() -> None:
    assert set(TRANSITIONS) == set(get_args(State))
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize("start", get_args(State))
def test_every_state_leads_to_stopped(start: State) -> None:
    reached, fresh = {start}, {start}
    while fresh:
        fresh = {state for known in fresh for state in TRANSITIONS[known]} - reached
        reached |= fresh
    assert "stopped" in reached


@pytest.mark.parametrize(
    ("current", "following"), [("stopped", "ready"), ("failed", "starting"), ("ready", "starting")]
)
def test_an_impossible_step_is_an_error(current: State, following: State) -> None:
    with pytest.raises(ImpossibleTransition, match=f"{current} to {following}"):
        advance(current, following)


def test_pauses_double_up_to_the_longest() -> None:
    assert [backoff_delay_s(failures, 1.0, 5.0) for failures in (0, 1, 2, 3, 4, 400)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_gives_up_at_the_last_allowed_failure() -> None:
    assert [after_failure(failures, 3) for failures in (1, 2, 3, 4)] == ["backoff", "backoff", "failed", "failed"]


FIT = "0.00.004.192 E common_fit_params: encountered an error while trying to fit params to free device memory: failed to load model"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (
            "0.00.003.960 E gguf_init_from_file: failed to open GGUF file '/x/y.gguf' (No such file or directory)",
            "file_missing",
        ),
        ("0.00.003.996 E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'", "not_gguf"),
        ("0.00.003.996 E gguf_init_from_reader: failed to read magic", "not_gguf"),
        ("0.00.021.058 E gguf_init_from_reader: failed to read key-value pairs", "model_damaged"),
        (
            "0.00.028.001 E llama_model_load: error loading model: tensor 'blk.15.attn_output.weight' data is not within "
            "the file bounds, model is corrupted or incomplete",
            "model_damaged",
        ),
        (
            "0.00.062.000 E llama_model_load: error loading model: unknown model architecture: 'zzzzz'",
            "unknown_architecture",
        ),
        ("0.00.062.000 E ggml_aligned_malloc: insufficient memory (attempted to allocate 2880.00 MB)", "out_of_memory"),
        (
            "0.00.062.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 123.45 MiB on device 0: cudaMalloc "
            "failed: out of memory",
            "out_of_memory",
        ),
        ("0.00.008.000 E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18101", "port_taken"),
        ("error: invalid argument: --no-such-flag", "bad_argument"),
        ("hostler: 1: exec: /opt/llama-server: not found", "engine_missing"),
        ('error while handling argument "-c": stoi', "bad_argument"),
    ],
)
def test_a_known_line_gives_its_reason(line: str, kind: str) -> None:
    failure = explain_exit(
        "m", 1, ["0.00.000.264 I srv init: initializing ...", line, FIT, "error: Failed to init server"]
    )
    assert failure.kind == kind
    assert failure.exit_code == 1
    assert line in failure.lines
    assert '"m"' in failure.message


def test_the_file_or_argument_is_named() -> None:
    missing = explain_exit(
        "m", 1, ["gguf_init_from_file: failed to open GGUF file '/x/y.gguf' (No such file or directory)"]
    )
    assert "/x/y.gguf" in missing.message
    assert "--nope" in explain_exit("m", 1, ["error: invalid argument: --nope"]).message


def test_a_signal_is_named() -> None:
    failure = explain_exit("m", -9, [])
    assert failure.kind == "killed"
    assert "SIGKILL" in failure.message


def test_an_unknown_program_is_quoted() -> None:
    failure = explain_exit("m", 3, ["Traceback (most recent call last):", "ValueError: something odd", ""])
    assert failure.kind == "exited"
    assert "exit code 3: ValueError: something odd" in failure.message


def test_lines_of_the_start_do_not_explain_the_end_of_a_server_that_ran() -> None:
    assert explain_exit("m", -11, ["W out of memory, trying again"], ready=True).kind == "killed"


def test_only_the_last_lines_travel() -> None:
    failure = explain_exit("m", 1, [f"line {number}" for number in range(100)])
    assert len(failure.lines) == LINES_KEPT
    assert failure.lines[-1] == "line 99"


def test_the_first_error_line_is_the_reason() -> None:
    lines = ["0.00.001.000 I a: fine", "0.00.002.000 E b: first", "0.00.003.000 E c: second"]
    assert error_line(lines) == "b: first"
