"""The retry budget: a tenth of the requests, and two a second in any case."""

from __future__ import annotations

from hostler.gateway.backends.retry_budget import RetryBudget, RetryRules


def spent(budget: RetryBudget, at: float, tries: int) -> int:
    return sum(budget.try_retry(at) for _ in range(tries))


def test_allows_two_retries_in_any_second_without_any_traffic() -> None:
    budget = RetryBudget(RetryRules())
    assert spent(budget, 100.0, 5) == 2
    assert spent(budget, 100.9, 5) == 0
    assert spent(budget, 101.0, 5) == 2


def test_allows_a_tenth_of_the_requests_when_that_is_more() -> None:
    budget = RetryBudget(RetryRules())
    for number in range(1000):
        budget.count_request(50.0 + number / 1000)
    assert spent(budget, 51.0, 500) == 100


def test_retries_do_not_earn_retries() -> None:
    budget = RetryBudget(RetryRules(share=1.0, per_second=0))
    budget.count_request(1.0)
    assert spent(budget, 1.0, 10) == 1


def test_forgets_requests_after_the_window() -> None:
    budget = RetryBudget(RetryRules())
    for _ in range(1000):
        budget.count_request(50.0)
    assert spent(budget, 61.0, 500) == 2


def test_steady_failures_cost_at_most_a_tenth_more_requests() -> None:
    budget = RetryBudget(RetryRules())
    retries = 0
    for number in range(60_000):
        now = number / 1000
        budget.count_request(now)
        retries += budget.try_retry(now)
    assert 0.08 * 60_000 < retries <= 0.1 * 60_000 + 2 * 60


def test_without_requests_and_a_minimum_there_is_no_retry() -> None:
    assert not RetryBudget(RetryRules(per_second=0)).try_retry(0.0)
