"""Circuit breakers: of a host and its models, state by state, and what each outcome does to them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.gateway.backends.circuit_breaker import BreakerPermit, BreakerRules, CircuitBreaker, CircuitBreakers
from hostler.gateway.backends.failure_policy import FAILURE_RULES, AttemptResult, FailureRule, classify_status


def breaker(**rules: float) -> CircuitBreaker:
    return CircuitBreaker(BreakerRules(**{"jitter": 0.0, **rules}), lambda: 0.5)  # type: ignore[arg-type]  # numbers of both kinds


def fail(breaker: CircuitBreaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        permit = breaker.acquire(now)
        assert permit is not None
        breaker.failure(permit, now)


def succeed(breaker: CircuitBreaker, now: float) -> None:
    permit = breaker.acquire(now)
    assert permit is not None
    breaker.success(permit, now)


def test_opens_after_three_failures_in_a_row() -> None:
    subject = breaker()
    fail(subject, 0.0, 2)
    assert subject.allows(0.0)
    fail(subject, 0.0)
    assert subject.state(0.0) == "open"
    assert subject.acquire(4.9) is None
    assert subject.retry_in(1.0) == 4.0


def test_a_success_in_between_starts_the_count_again() -> None:
    subject = breaker()
    fail(subject, 0.0, 2)
    succeed(subject, 0.0)
    fail(subject, 0.0, 2)
    assert subject.state(0.0) == "closed"


def test_lets_one_of_fifty_through_when_half_open() -> None:
    subject = breaker()
    fail(subject, 0.0, 3)
    permits = [subject.acquire(5.0) for _ in range(50)]
    assert sum(permit is not None for permit in permits) == 1
    assert subject.state(5.0) == "half_open"


def test_closes_after_two_successful_trials() -> None:
    subject = breaker()
    fail(subject, 0.0, 3)
    succeed(subject, 5.0)
    assert subject.state(5.0) == "half_open"
    succeed(subject, 5.1)
    assert subject.state(5.1) == "closed"


def test_an_abandoned_trial_frees_its_place() -> None:
    subject = breaker()
    fail(subject, 0.0, 3)
    permit = subject.acquire(5.0)
    assert permit is not None and not subject.allows(5.0)
    subject.release(permit)
    assert subject.allows(5.0)


def test_stays_open_twice_as_long_each_time_up_to_the_limit() -> None:
    subject, now, spans = breaker(), 0.0, []
    fail(subject, now, 3)
    for _ in range(8):
        spans.append(subject.retry_in(now))
        now += spans[-1]
        fail(subject, now)
    assert spans == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]


def test_after_closing_the_open_time_starts_short_again() -> None:
    subject = breaker()
    fail(subject, 0.0, 3)
    fail(subject, 5.0)
    succeed(subject, 15.0)
    succeed(subject, 15.0)
    fail(subject, 20.0, 3)
    assert subject.retry_in(20.0) == 5.0


def test_jitter_only_shortens_the_open_time() -> None:
    rules = BreakerRules(jitter=0.2)
    for chance, span in ((0.0, 5.0), (0.5, 4.5), (1.0, 4.0)):
        subject = CircuitBreaker(rules, lambda chance=chance: chance)
        fail(subject, 0.0, 3)
        assert subject.retry_in(0.0) == pytest.approx(span)


def test_results_from_before_it_opened_do_not_count() -> None:
    subject = breaker()
    early = [subject.acquire(0.0) for _ in range(50)]
    for permit in early:
        assert permit is not None
        subject.failure(permit, 1.0)
    assert subject.retry_in(1.0) == 5.0
    late = subject.acquire(6.0)
    assert late is not None
    subject.failure(late, 6.0)
    assert subject.retry_in(6.0) == 10.0


def test_a_late_result_does_not_free_the_place_of_a_running_trial() -> None:
    subject = breaker()
    late = subject.acquire(0.0)
    fail(subject, 0.0, 3)
    assert late is not None and subject.acquire(5.0) is not None
    subject.release(late)
    assert not subject.allows(5.0)


def test_cooling_is_no_failure() -> None:
    subject = breaker()
    subject.cool(30.0)
    assert subject.state(1.0) == "closed"
    assert subject.acquire(29.9) is None
    assert subject.retry_in(10.0) == 20.0
    assert subject.acquire(30.0) is not None


def test_a_trip_lasts_as_given_and_ends_with_a_trial() -> None:
    subject = breaker()
    subject.trip(0.0, 900.0)
    assert subject.retry_in(100.0) == 800.0
    assert subject.state(900.0) == "half_open"


def test_one_health_check_closes_it_at_once() -> None:
    subject = breaker()
    fail(subject, 0.0, 3)
    subject.close()
    assert subject.state(0.1) == "closed" and subject.allows(0.1)


def test_opens_at_the_first_failure_with_at_once() -> None:
    subject = breaker()
    permit = subject.acquire(0.0)
    assert permit is not None
    subject.failure(permit, 0.0, at_once=True)
    assert subject.state(0.0) == "open"


@given(
    st.lists(st.tuples(st.sampled_from(["acquire", "success", "failure", "release"]), st.floats(0, 20)), max_size=60)
)
@settings(deadline=None)
def test_never_sticks_and_never_allows_two_trials(history: list[tuple[str, float]]) -> None:
    subject, now = breaker(), 0.0
    out: list[BreakerPermit] = []
    for action, passed in history:
        now += passed
        if action == "acquire":
            permit = subject.acquire(now)
            if permit is not None:
                assert not (permit.trial and any(other == permit for other in out))
                out.append(permit)
        elif out:
            permit = out.pop(0)
            subject.release(permit) if action == "release" else getattr(subject, action)(permit, now)
    for permit in out:
        subject.release(permit)
    assert subject.allows(now + subject.retry_in(now))


# The table, row by row: same hop again, next hop, (host, model), host.
ROWS: dict[AttemptResult, tuple[str, str, str, str]] = {
    "answered": ("no", "no", "success", "success"),
    "unreachable": ("no", "yes", "neutral", "failure"),
    "connect_timeout": ("no", "yes", "neutral", "failure"),
    "loading": ("wait", "past_limit", "neutral", "neutral"),
    "model_unavailable": ("no", "yes", "neutral", "neutral"),
    "busy": ("if_short", "yes", "cool", "neutral"),
    "server_error": ("budget", "yes", "failure", "suspect"),
    "rejected": ("no", "if_other", "neutral", "neutral"),
    "auth_failed": ("no", "yes", "open", "neutral"),
    "payment_required": ("no", "yes", "open", "neutral"),
    "first_byte_timeout": ("no", "yes", "failure", "neutral"),
    "broken": ("no", "never", "failure", "neutral"),
    "client_disconnected": ("no", "no", "neutral", "neutral"),
}


def test_every_outcome_has_a_rule() -> None:
    assert set(ROWS) == set(FAILURE_RULES)


@pytest.mark.parametrize("outcome", ROWS)
def test_the_rule_of_each_outcome(outcome: AttemptResult) -> None:
    row = FAILURE_RULES[outcome]
    assert (row.retry, row.fallback, row.model, row.host) == ROWS[outcome]


@pytest.mark.parametrize(("outcome", "attempts", "host", "model", "for_s"), [
    ("answered", 9, "closed", "closed", 0),
    ("unreachable", 3, "open", "closed", 5),
    ("connect_timeout", 3, "open", "closed", 5),
    ("loading", 9, "closed", "closed", 0),
    ("model_unavailable", 9, "closed", "closed", 0),
    ("busy", 1, "closed", "closed", 7),
    ("server_error", 3, "closed", "open", 5),
    ("rejected", 9, "closed", "closed", 0),
    ("auth_failed", 1, "closed", "open", 900),
    ("payment_required", 1, "closed", "open", 21600),
    ("first_byte_timeout", 3, "closed", "open", 5),
    ("broken", 3, "closed", "open", 5),
    ("client_disconnected", 9, "closed", "closed", 0),
])  # fmt: skip
def test_the_breakers_follow_the_rule(
    outcome: AttemptResult, attempts: int, host: str, model: str, for_s: float
) -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    for _ in range(attempts):
        permit = subject.acquire("m", 0.0)
        assert permit is not None
        subject.report(permit, outcome, 0.0, retry_after_s=7.0)
    assert (subject.host.state(0.0), subject.models["m"].state(0.0)) == (host, model)
    assert subject.retry_in("m", 0.0) == for_s
    assert (subject.acquire("m", 0.0) is None) == (for_s > 0)


def test_only_failed_auth_and_required_payment_alert_operators() -> None:
    assert {outcome for outcome, row in FAILURE_RULES.items() if row.alert} == {"auth_failed", "payment_required"}


def report(subject: CircuitBreakers, model: str, outcome: AttemptResult, now: float, **more: bool) -> FailureRule:
    permit = subject.acquire(model, now)
    assert permit is not None
    return subject.report(permit, outcome, now, **more)  # type: ignore[arg-type]  # only flags are passed


def test_errors_of_two_models_are_failures_of_the_host() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    for model in ("a", "b", "a", "b"):
        report(subject, model, "server_error", 0.0)
    assert subject.host.state(0.0) == "open"


def test_an_answer_of_any_model_clears_the_host() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    for model in ("a", "c", "b", "c", "a", "c", "b"):
        report(subject, model, "answered" if model == "c" else "server_error", 0.0)
    assert subject.host.state(0.0) == "closed"


def test_a_host_without_heartbeat_opens_at_the_first_failure() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    report(subject, "m", "unreachable", 0.0, down=True)
    assert subject.acquire("m", 0.0) is None


def test_a_model_that_is_not_allowed_does_not_take_the_hosts_only_trial() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    report(subject, "m", "auth_failed", 0.0)
    for _ in range(3):
        report(subject, "n", "unreachable", 0.0)
    assert subject.acquire("m", 5.0) is None
    assert subject.acquire("n", 5.0) is not None


def test_a_recovered_host_is_used_again_after_one_health_check() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    for _ in range(3):
        report(subject, "m", "unreachable", 0.0)
    subject.recovered()
    assert subject.state("m", 0.1) == "closed"
    assert subject.acquire("m", 0.1) and subject.acquire("m", 0.1)


@pytest.mark.parametrize(("status", "retry_after", "loading", "outcome"), [
    (302, False, False, "server_error"), (402, True, False, "busy"), (407, False, False, "auth_failed"), (400, False, False, "rejected"), (401, False, False, "auth_failed"),
    (402, False, False, "payment_required"), (403, False, False, "auth_failed"), (404, False, False, "rejected"),
    (413, False, False, "rejected"), (422, False, False, "rejected"), (429, False, False, "busy"),
    (429, True, False, "busy"), (500, False, False, "server_error"), (502, False, False, "server_error"),
    (503, False, False, "server_error"), (503, True, False, "busy"), (503, False, True, "loading"),
    (503, True, True, "loading"), (504, False, False, "server_error"), (501, False, False, "rejected"),
])  # fmt: skip
def test_a_status_is_an_outcome(status: int, retry_after: bool, loading: bool, outcome: AttemptResult) -> None:
    assert classify_status(status, retry_after=retry_after, loading=loading) == outcome


def test_the_first_token_counts_before_the_answer_has_ended() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    for _ in range(3):
        report(subject, "m", "unreachable", 0.0)
    first = subject.acquire("m", 5.0)
    assert first is not None and subject.acquire("m", 5.0) is None
    first = subject.first_token(first, 6.0)
    second = subject.acquire("m", 6.0)
    assert second is not None
    subject.report(subject.first_token(second, 7.0), "answered", 8.0)
    assert subject.host.state(8.0) == "closed"
    subject.report(first, "broken", 9.0)
    assert subject.acquire("m", 9.0) is not None


def test_an_answer_that_breaks_off_is_a_failure_despite_its_first_token() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    for _ in range(3):
        permit = subject.acquire("m", 0.0)
        assert permit is not None
        subject.report(permit, "server_error", 0.0)
    permit = subject.acquire("m", 5.0)
    assert permit is not None
    subject.report(subject.first_token(permit, 5.0), "broken", 6.0)
    assert subject.state("m", 6.0) == "open"


def test_failing_health_checks_keep_a_circuit_open() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    for at in range(3):
        subject.check_failed(float(at), 10.0)
    assert subject.state("m", 2.0) == "open"
    for at in range(3, 100, 8):
        subject.check_failed(float(at), 10.0)
        assert subject.acquire("m", at + 7.9) is None
    subject.recovered()
    assert subject.acquire("m", 100.0) is not None


def test_a_reset_model_is_used_at_once() -> None:
    subject = CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0)
    report(subject, "m", "payment_required", 0.0)
    subject.reset("m")
    assert subject.acquire("m", 0.1) is not None


def test_what_another_process_has_found_out_opens_and_closes_a_breaker() -> None:
    subject = CircuitBreakers(BreakerRules(), lambda: 0.0)
    subject.follow("m", "open", 0.0, 5.0)
    assert (subject.state("m", 1.0), subject.state("other", 1.0)) == ("open", "closed")
    assert subject.retry_in("m", 1.0) == 4.0
    subject.follow("m", "half_open", 1.0, 0.0)
    assert subject.state("m", 1.0) == "open"
    subject.follow("m", "closed", 1.0, 0.0)
    subject.follow(None, "open", 1.0, 5.0)
    assert subject.host.state(1.0) == "open"
    assert subject.models["m"].state(1.0) == "closed"


def test_a_breaker_that_is_open_stays_open_for_as_long_as_it_was() -> None:
    subject = CircuitBreakers(BreakerRules(), lambda: 0.0)
    subject.host.trip(0.0, 10.0)
    subject.follow(None, "open", 1.0, 1.0)
    assert subject.host.retry_in(1.0) == 9.0
