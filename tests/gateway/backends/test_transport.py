"""The time limits of requests to backends."""

from __future__ import annotations

from hostler.gateway.backends.transport import Timeouts
from hostler.supervisor.contract import AnswerLimits


def test_a_profiles_limits_replace_only_those_that_it_has() -> None:
    timeouts = Timeouts(connect_s=1.0, first_byte_s=2.0, between_bytes_s=3.0, first_token_s=4.0)
    assert timeouts.limited(AnswerLimits(max_answer_s=9.0)) == timeouts
    limited = timeouts.limited(AnswerLimits(between_bytes_s=30.0))
    assert limited == Timeouts(connect_s=1.0, first_byte_s=2.0, between_bytes_s=30.0, first_token_s=4.0)
    assert timeouts.limited(AnswerLimits(first_byte_s=20.0)).first_byte_s == 20.0
