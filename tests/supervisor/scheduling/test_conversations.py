"""The conversations that a host has answered."""

from __future__ import annotations

from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.scheduling.conversations import AnsweredConversations, as_sets, read_before


def prompt(*marks: int) -> PromptIdentity:
    return PromptIdentity(marks=tuple((mark, 100 * (place + 1)) for place, mark in enumerate(marks)))


def test_the_next_prompt_of_a_conversation_is_known_up_to_the_last_one() -> None:
    answered = AnsweredConversations()
    answered.add("m", prompt(1, 2))
    assert read_before(prompt(1, 2, 3, 4), answered.ends("m")) == 200
    assert read_before(prompt(1, 5, 6), answered.ends("m")) == 0
    assert read_before(prompt(1, 2, 3), answered.ends("other")) == 0
    assert read_before(None, answered.ends("m")) == 0


def test_a_conversation_takes_one_place_however_long_it_gets() -> None:
    answered = AnsweredConversations()
    for length in range(1, 50):
        answered.add("m", prompt(*range(length)))
    answered.add("m", prompt(100))
    answered.add("m", PromptIdentity())
    assert answered.published() == {"m": (48, 100)}


def test_the_oldest_conversations_and_models_are_forgotten() -> None:
    answered = AnsweredConversations()
    for number in range(100):
        answered.add("m", prompt(number))
    assert next(iter(answered.ends("m"))) == 36
    for number in range(32):
        answered.add(f"other{number}", prompt(1))
    assert "m" not in answered.published()
    assert as_sets(answered.published())["other1"] == {1}
