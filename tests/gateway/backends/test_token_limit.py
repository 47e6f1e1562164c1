"""How long keep-alives may come instead of tokens."""

from __future__ import annotations

import pytest

from hostler.adapters.canonical import PromptStatus
from hostler.adapters.errors import BackendTimeout
from hostler.gateway.backends.token_limit import TokenLimit
from hostler.gateway.backends.transport import Timeouts

TIMEOUTS = Timeouts(first_byte_s=10, between_bytes_s=5)


def test_before_the_first_token_keep_alives_may_go_on_for_many_times_the_limit_of_silence() -> None:
    limit = TokenLimit(TIMEOUTS, 100.0)
    limit.before_token(None, 159.0)
    with pytest.raises(BackendTimeout):
        limit.before_token(None, 160.0)


def test_the_limit_can_be_set() -> None:
    limit = TokenLimit(Timeouts(first_byte_s=10, first_token_s=20), 100.0)
    with pytest.raises(BackendTimeout):
        limit.before_token(None, 120.0)


def test_a_prompt_that_is_being_read_takes_as_long_as_it_takes() -> None:
    limit = TokenLimit(TIMEOUTS, 0.0)
    for step in range(1, 10):
        limit.before_token(PromptStatus(total=1000, processed=step), 50.0 * step)
    same = PromptStatus(total=1000, processed=9)
    limit.before_token(same, 500.0)
    with pytest.raises(BackendTimeout):
        limit.before_token(same, 511.0)


def test_after_the_first_token_only_other_pieces_count() -> None:
    limit = TokenLimit(TIMEOUTS, 0.0)
    limit.after_token(3, 10.0)
    limit.after_token(4, 14.9)
    limit.after_token(6, 16.0)  # piece 5 was a token
    limit.after_token(7, 20.9)
    with pytest.raises(BackendTimeout):
        limit.after_token(8, 21.0)
