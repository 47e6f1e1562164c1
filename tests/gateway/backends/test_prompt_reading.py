"""The progress of reading a prompt: reported by the backend, else estimated from earlier requests."""

from __future__ import annotations

from fakes.requests import target

from hostler.adapters.canonical import Progress, PromptStatus, Usage
from hostler.gateway.backends.prompt_reading import MODELS, PromptSpeeds, reading_progress
from hostler.gateway.context import Attempt

HERE = target("a")


def progress(
    now: float, *, prompt: PromptStatus | None = None, prompt_at: float = 0.0, usual_s: float | None = None
) -> Progress:
    attempt = Attempt(target=HERE, sent_at=100.0, prompt=prompt, prompt_at=prompt_at)
    return reading_progress(attempt, "m", usual_s, now)


def shown(found: Progress) -> tuple[float | None, float | None, float | None, bool]:
    return found.percent, found.eta_s, found.elapsed_s, found.overdue


def test_without_knowledge_the_time_so_far_is_shown() -> None:
    assert shown(progress(103.0)) == (None, None, 3.0, False)
    assert progress(103.0).phase == "reading the prompt"


def test_a_report_tells_the_share_and_the_rest() -> None:
    prompt = PromptStatus(total=1100, cached=100, processed=350, seconds=2.0)
    assert shown(progress(102.0, prompt=prompt, prompt_at=102.0)) == (25.0, 6.0, 2.0, False)
    assert shown(progress(103.0, prompt=prompt, prompt_at=102.0)) == (25.0, 5.0, 3.0, False)


def test_the_last_percent_is_not_shown() -> None:
    prompt = PromptStatus(total=1000, processed=995, seconds=10.0)
    assert progress(110.0, prompt=prompt, prompt_at=110.0).percent is None
    assert progress(109.99, usual_s=10.0).percent is None


def test_past_the_estimate_there_is_neither_percent_nor_time_left() -> None:
    assert shown(progress(112.0, usual_s=10.0)) == (None, 0.0, 12.0, False)
    assert shown(progress(114.0, usual_s=10.0)) == (None, None, 14.0, True)
    prompt = PromptStatus(total=1000, processed=500, seconds=5.0)
    assert progress(120.0, prompt=prompt, prompt_at=105.0).overdue


def test_speed_is_learned_by_token_and_by_byte() -> None:
    speeds = PromptSpeeds()
    assert speeds.estimate_s(HERE, 1000, None) is None
    speeds.learn(HERE, Usage(prompt_tokens=250, cached_tokens=50), 1000, 4.0)
    assert speeds.estimate_s(HERE, 2000, None) == 10.0  # 500 tokens, 20 ms each
    assert speeds.estimate_s(HERE, 2000, PromptStatus(total=120, cached=20)) == 2.0
    assert speeds.estimate_s(target("b"), 1000, None) is None
    speeds.learn(HERE, Usage(prompt_tokens=250, prompt_ms=10_000.0), 1000, 99.0)  # the engine's own time counts
    assert speeds.estimate_s(HERE, 1000, None) == 7.5


def test_what_shows_no_speed_is_not_learned() -> None:
    speeds = PromptSpeeds()
    speeds.learn(HERE, Usage(prompt_tokens=100), 1000, 0.01)
    speeds.learn(HERE, Usage(prompt_tokens=100, cached_tokens=100), 1000, 4.0)
    speeds.learn(HERE, Usage(), 1000, 4.0)
    assert speeds.estimate_s(HERE, 1000, None) is None


def test_the_number_of_speeds_is_bounded() -> None:
    speeds = PromptSpeeds()
    for number in range(MODELS + 1):
        speeds.learn(target(f"b{number}"), Usage(prompt_tokens=100), 1000, 4.0)
    assert speeds.estimate_s(target("b0"), 1000, None) is None
    assert speeds.estimate_s(target("b1"), 1000, None) == 4.0
