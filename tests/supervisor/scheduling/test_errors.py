"""Why a model is not available, in words that no client misreads."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from hostler.adapters.errors import GatewayError, TooManyRequests
from hostler.supervisor.contract import DeviceStatus, Failure, HostStatus, ProfileInfo
from hostler.supervisor.scheduling.errors import load_failure_message, refusal_error
from hostler.supervisor.scheduling.types import Refuse


@pytest.mark.parametrize(
    "words",
    [
        "failed to create context",
        "prompt has too many tokens",
        "n_ctx: Context size 4096",
        "max_length is 10",
        "window of 512",
    ],
)
def test_words_that_clients_read_as_a_context_overflow_are_left_out(words: str) -> None:
    message = load_failure_message("a", "pc", Failure(kind="exited", message=words))
    assert message == "a could not be loaded on pc: the engine exited"


def test_the_reason_is_the_failures_own_and_not_the_engines_last_lines() -> None:
    failure = Failure(
        kind="bad_argument", message="the engine does not know the argument --flash", lines=("bye", "srv: cleaning up")
    )
    message = load_failure_message("a", "pc", failure)
    assert message == "a could not be loaded on pc: the engine does not know the argument --flash"


def test_a_model_may_be_called_like_such_a_word() -> None:
    failure = Failure(kind="exited", message='the engine of model "long-context" ended with exit code 3')
    assert "ended with exit code 3" in load_failure_message("long-context", "pc", failure)


def test_paths_are_shortened_to_file_names() -> None:
    failure = Failure(kind="file_missing", message="cannot open /srv/secret/x.gguf here")
    message = load_failure_message("a", "pc", failure)
    assert "cannot open x.gguf here" in message and "srv" not in message


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(kind="exited", message="x", exit_code=3), "x (exit code 3)"),
        (Failure(kind="killed", message="x", exit_code=-9), "x (signal 9)"),
        (
            Failure(kind="start_timeout", message="not ready within 15 s"),
            "pc: it was not ready in time (not ready within 15 s)",
        ),
        (
            Failure(kind="file_missing", message="/srv/secret/x.gguf does not exist"),
            "pc: its file is missing (x.gguf does not exist)",
        ),
        (Failure(kind="out_of_memory", message="no room for its context"), "stop other programs"),
    ],
)
def test_the_exit_code_or_the_reason_of_the_log_is_in_the_message(failure: Failure, words: str) -> None:
    message = load_failure_message("a", "pc", failure)
    assert words in message and "secret" not in message and "context" not in message


def load_error(**fields: Any) -> GatewayError:
    failure = Failure(message="x", **fields)
    refusal = Refuse(ticket=1, model="a", reason="load_failed", retry_after_s=60.0, failure=failure)
    return refusal_error(refusal, "pc")


@pytest.mark.parametrize("kind", ["file_missing", "bad_argument", "exited", "start_timeout", "out_of_memory"])
def test_a_model_that_cannot_start_is_final(kind: str) -> None:
    error = load_error(kind=kind, retry_after_s=60.0)
    assert (error.final, error.retry_after_s) == (True, None)


def test_what_may_load_at_the_next_try_is_not_final() -> None:
    for kind in ("killed", "cancelled", "source_unavailable", "unresponsive"):
        assert not load_error(kind=kind).final
    assert load_error(kind="killed", retry_after_s=60.0).final  # again and again


GIB = 1024**3
LARGE = ProfileInfo(name="large", memory_bytes=8 * GIB, device_bytes={"gpu0": 8 * GIB})
PINNED = ProfileInfo(name="p", pinned=True, memory_bytes=2 * GIB, device_bytes={"gpu0": 2 * GIB})
CARD = DeviceStatus(name="gpu0", total_bytes=24 * GIB)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "large does not fit into the memory of pc; make the profile smaller"),
        (
            HostStatus(profiles=(LARGE, PINNED), budget_bytes=9 * GIB),
            "large can never fit into the memory budget of pc: it needs 8.0 GiB of 9.0 GiB, of which 2.0 for pinned models; "
            "raise supervisor.memory_budget or make the profile smaller",
        ),
        (
            HostStatus(profiles=(LARGE,), devices=(replace(CARD, budget_bytes=4 * GIB, capacity_bytes=4 * GIB),)),
            "large can never fit on gpu0 of pc: it needs 8.0 GiB of 4.0 GiB; raise supervisor.devices.gpu0.budget, split the "
            "profile over more devices, or make it smaller",
        ),
        (
            HostStatus(profiles=(LARGE,), devices=(replace(CARD, other_bytes=18 * GIB, capacity_bytes=6 * GIB),)),
            "large does not fit on gpu0 of pc now: it needs 8.0 GiB of 6.0 GiB, while other programs use 18.0 GiB; try again "
            "when they have ended",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_sum(status: HostStatus | None, words: str) -> None:
    refusal = Refuse(ticket=1, model="large", reason="does_not_fit", retry_after_s=0.0)
    error = refusal_error(refusal, "pc", status)
    # Other programs may end by themselves.
    assert (error.message, error.final) == (words, "now" not in words)


def test_a_full_queue_of_one_model_names_the_limit_of_its_profile() -> None:
    error = refusal_error(Refuse(ticket=1, model="a", reason="model_queue_full", retry_after_s=2.5), "pc")
    assert isinstance(error, TooManyRequests)
    assert error.message == (
        "as many requests wait for a on pc as its profile allows (max_waiting); try again in about 3 seconds"
    )
    assert error.retry_after_s == 2.5
