"""What keys use, against their limits, over days and restarts."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from hostler.adapters.errors import RateLimited
from hostler.gateway.context import KeyRules
from hostler.gateway.gateway_settings import GatewaySettings
from hostler.gateway.key_usage import KeyUsage, read_figures, usage_file

NOON = datetime.datetime(2027, 1, 15, 12).timestamp()


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "usage.json"


def use(usage: KeyUsage, rules: KeyRules, tokens: int = 0, *, key: str = "bob", dollars: float = 0.0) -> None:
    """One request that uses exactly this."""
    reserved = usage.reserve(key, rules, prompt_tokens=0, dollars=dollars)
    usage.settle(reserved, prompt_tokens=0, answer_tokens=tokens, dollars=dollars)


def refusal(usage: KeyUsage, rules: KeyRules, *, dollars: float = 0.0) -> RateLimited:
    with pytest.raises(RateLimited) as refused:
        usage.reserve("bob", rules, prompt_tokens=0, dollars=dollars)
    return refused.value


def test_no_minute_has_more_requests_than_allowed(file: Path, clock: Clock) -> None:
    usage, rules, admitted = KeyUsage(file, clock), KeyRules(requests_per_minute=5), []
    for _ in range(3000):
        clock.now += 0.1
        try:
            use(usage, rules)
        except RateLimited as error:
            assert error.retry_after_s is not None
            assert error.retry_after_s >= 1
        else:
            admitted.append(clock.now)
    assert len(admitted) == 25
    assert all(later - earlier >= 60 for earlier, later in zip(admitted, admitted[5:], strict=False))


def test_a_request_is_admitted_after_the_time_that_its_refusal_gave(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(requests_per_minute=2, tokens_per_minute=100)
    use(usage, rules, 60)
    clock.now += 20
    use(usage, rules, 60)
    error = refusal(usage, rules)
    clock.now += (error.retry_after_s or 0) - 1.1
    refusal(usage, rules)
    clock.now += 1.2
    use(usage, rules, 10)


def test_keys_do_not_use_up_each_others_limits(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(requests_per_minute=1)
    use(usage, rules)
    use(usage, rules, key="eve")
    assert "1 requests per minute" in refusal(usage, rules).message


@pytest.mark.parametrize(
    ("rules", "words"),
    [(KeyRules(tokens_per_minute=100), "100 tokens per minute"), (KeyRules(tokens_per_day=100), "100 tokens per day")],
)
def test_tokens_are_used_up_to_the_limit(file: Path, clock: Clock, rules: KeyRules, words: str) -> None:
    usage = KeyUsage(file, clock)
    use(usage, rules, 40)
    use(usage, rules, 59)
    use(usage, rules, 40)
    assert words in refusal(usage, rules).message


def test_many_requests_at_once_exceed_the_limit_by_one_answer_at_most(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(tokens_per_day=2500)
    open_requests = [usage.reserve("bob", rules, prompt_tokens=0, dollars=0) for _ in range(3)]
    assert refusal(usage, rules).retry_after_s == 1
    for each in open_requests:
        usage.settle(each, prompt_tokens=0, answer_tokens=10, dollars=0)
        usage.settle(each, prompt_tokens=0, answer_tokens=10_000, dollars=0)
    assert usage.figures()["bob"].tokens == 30
    use(usage, rules, 10)


def test_money_is_spent_only_as_far_as_the_estimate_fits(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(dollars_per_day=0.05)
    use(usage, rules, dollars=0.02)
    use(usage, rules, dollars=0.02)
    error = refusal(usage, rules, dollars=0.02)
    assert "0.05 US dollars per day" in error.message
    assert error.retry_after_s == 12 * 3600
    use(usage, rules, dollars=0.01)
    use(usage, rules)
    assert usage.figures()["bob"].dollars == pytest.approx(0.05)


def test_the_first_request_of_a_day_may_cost_more_than_is_left_if_it_is_alone(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(dollars_per_day=0.01)
    reserved = usage.reserve("bob", rules, prompt_tokens=0, dollars=0.5)
    assert not usage.allows_cost("bob", rules, 0.005)
    usage.settle(reserved, prompt_tokens=0, answer_tokens=0, dollars=0.005)
    assert usage.allows_cost("bob", rules, 0.005)
    assert not KeyUsage(None, clock).allows_cost("bob", KeyRules(dollars_per_day=0), 0.005)


def test_a_day_ends_at_midnight(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(tokens_per_day=10)
    use(usage, rules, 10)
    clock.now += refusal(usage, rules).retry_after_s or 0
    use(usage, rules, 3)
    assert (usage.figures()["bob"].tokens, usage.figures()["bob"].requests) == (3, 1)


def test_counts_that_no_backend_can_have_meant_are_bounded(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(tokens_per_day=10)
    use(usage, rules, -100)
    assert usage.figures()["bob"].tokens == 0
    use(usage, rules, 10**30)
    assert usage.figures()["bob"].tokens == 10**9
    use(usage, KeyRules(dollars_per_day=1), dollars=-5)
    assert usage.figures()["bob"].dollars == 0


def test_nothing_is_lost_over_a_restart(file: Path, clock: Clock) -> None:
    rules = KeyRules(requests_per_minute=3, tokens_per_day=100, dollars_per_day=1)
    usage = KeyUsage(file, clock)
    use(usage, rules, 40, dollars=0.25)
    usage.write()
    again = KeyUsage(file, clock)
    assert again.figures() == usage.figures()
    assert read_figures(file, clock.now) == usage.figures()
    use(again, rules, 40)
    use(again, rules, 10)
    assert "3 requests per minute" in refusal(KeyUsage(file, clock), rules).message


def test_what_was_in_progress_at_a_crash_counts_as_used(file: Path, clock: Clock) -> None:
    rules = KeyRules(tokens_per_day=5000, dollars_per_day=1)
    KeyUsage(file, clock).reserve("bob", rules, prompt_tokens=200, dollars=0.75)
    figures = KeyUsage(file, clock).figures()["bob"]
    assert (figures.tokens, figures.dollars, figures.reserved_tokens, figures.reserved_dollars) == (1200, 0.75, 0, 0)


def test_what_was_in_progress_at_a_crash_counts_for_a_minute(file: Path, clock: Clock) -> None:
    rules = KeyRules(tokens_per_minute=1000)
    KeyUsage(file, clock).reserve("bob", rules, prompt_tokens=200, dollars=0)
    again = KeyUsage(file, clock)
    assert "1000 tokens per minute" in refusal(again, rules).message
    clock.now += 62
    use(again, rules, 40)


def test_a_clock_that_is_set_back_does_not_lock_keys_out(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(requests_per_minute=1)
    use(usage, rules)
    clock.now -= 24 * 3600
    error = refusal(usage, rules)
    assert (error.retry_after_s or 0) <= 61
    clock.now += 61
    use(usage, rules)


def test_limits_say_what_is_left_and_when_all_of_it_is_back(file: Path, clock: Clock) -> None:
    rules = KeyRules(requests_per_minute=10, tokens_per_minute=100, tokens_per_day=1000)
    usage = KeyUsage(file, clock)
    use(usage, rules, 30)
    requests, tokens = usage.limits("bob", rules)
    assert (requests.kind, requests.limit, requests.remaining) == ("requests", 10, 9)
    assert (tokens.kind, tokens.limit, tokens.remaining) == ("tokens", 100, 70)
    assert 60 <= tokens.reset_s <= 61
    for _ in range(8):
        clock.now += 61
        use(usage, rules, 115)
    assert usage.limits("bob", rules)[1].limit == 100
    clock.now += 61
    assert usage.limits("bob", rules)[1].remaining == 50
    assert usage.limits("bob", KeyRules(dollars_per_day=1)) == ()


def test_the_file_is_where_state_is_kept(tmp_path: Path) -> None:
    assert usage_file(GatewaySettings(key_usage_file="/a/b.json")) == Path("/a/b.json")
    assert usage_file(GatewaySettings(), {"STATE_DIRECTORY": "/var/lib/h:/x"}) == Path("/var/lib/h/key-usage.json")
    assert usage_file(GatewaySettings(), {"XDG_STATE_HOME": "/s"}) == Path("/s/hostler/key-usage.json")


@pytest.mark.anyio
async def test_an_admission_says_what_is_left_and_why_a_request_is_refused(file: Path, clock: Clock) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(requests_per_minute=1)
    first = await usage.admit("bob", rules, prompt_tokens=10, dollars=0.0, has_local=True)
    second = await usage.admit("bob", rules, prompt_tokens=10, dollars=0.0, has_local=True)
    assert first.reservation is not None
    assert [limit.remaining for limit in first.limits] == [0]
    assert (second.reservation, second.refused) == (
        None,
        "this API key has reached its limit of 1 requests per minute",
    )
    assert second.retry_after_s >= 1


@pytest.mark.anyio
@pytest.mark.parametrize("has_local", [True, False])
async def test_beyond_the_money_only_local_backends_are_left(file: Path, clock: Clock, has_local: bool) -> None:
    usage, rules = KeyUsage(file, clock), KeyRules(dollars_per_day=1.0)
    use(usage, rules, dollars=1.0)
    admission = await usage.admit("bob", rules, prompt_tokens=10, dollars=0.5, has_local=has_local)
    assert admission.local_only is has_local
    assert (admission.reservation is not None) is has_local
