"""The retry budget: a tenth of the requests, and two a second in any case."""

from __future__ import annotations

from hostler.gateway.backends.retry_budget import BudgetRules, RetryBudget


def spent(budget: RetryBudget, at: float, tries: int) -> int:
    return sum(budget.spend(at) for _ in range(tries))


def test_allows_two_retries_in_any_second_without_any_traffic() -> None:
    budget = RetryBudget(BudgetRules())
    assert spent(budget, 100.0, 5) == 2
    assert spent(budget, 100.9, 5) == 0
    assert spent(budget, 101.0, 5) == 2


def test_allows_a_tenth_of_the_requests_when_that_is_more() -> None:
    budget = RetryBudget(BudgetRules())
    for number in range(1000):
        budget.request(50.0 + number / 1000)
    assert spent(budget, 51.0, 500) == 100


def test_retries_do_not_earn_retries() -> None:
    budget = RetryBudget(BudgetRules(share=1.0, per_second=0))
    budget.request(1.0)
    assert spent(budget, 1.0, 10) == 1


def test_forgets_requests_after_the_window() -> None:
    budget = RetryBudget(BudgetRules())
    for _ in range(1000):
        budget.request(50.0)
    assert spent(budget, 61.0, 500) == 2


def test_a_steady_stream_of_failures_costs_a_tenth_more_at_most() -> None:
    budget = RetryBudget(BudgetRules())
    retries = 0
    for number in range(60_000):
        now = number / 1000
        budget.request(now)
        retries += budget.spend(now)
    assert 0.08 * 60_000 < retries <= 0.1 * 60_000 + 2 * 60


def test_no_minimum_and_no_requests_is_no_retry() -> None:
    assert not RetryBudget(BudgetRules(per_second=0)).spend(0.0)
