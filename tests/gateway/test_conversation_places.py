"""Where conversations were last answered."""

from __future__ import annotations

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.conversation_places import AnsweredPrompt, ConversationPlaces
from hostler.supervisor.contract import PromptIdentity

FIRST = PromptIdentity(marks=((1, 10), (2, 500)))
NEXT = PromptIdentity(marks=((1, 10), (2, 500), (3, 600), (4, 700)))
HOSTS = ("pc", "attic")


class Process:
    """One that knows two hosts."""

    def __init__(self, secret: bytes = b"secret") -> None:
        self.now = 1000.0
        entries = {each: BackendSettings(kind="supervisor", url=f"http://{each}:1") for each in HOSTS}
        self.places = ConversationPlaces(entries, secret=secret, wall=lambda: self.now)
        self.answered: list[AnsweredPrompt] = []
        self.remembered: list[AnsweredPrompt] = []
        self.places.on_answered = self.answered.append
        self.places.on_remembered = self.remembered.append

    def find(self, prompt: PromptIdentity = NEXT) -> tuple[str, int] | None:
        return self.places.find("m", prompt, HOSTS)


def test_the_next_prompt_of_a_conversation_is_found_and_no_other() -> None:
    subject = Process()
    assert subject.find() is None
    subject.places.answered("attic", "m", FIRST)
    assert subject.find() == ("attic", 500)
    assert subject.places.find("another", NEXT, HOSTS) is None
    assert subject.places.find("m", NEXT, ["pc"]) is None
    assert subject.find(PromptIdentity(marks=((1, 10), (9, 500)))) is None


def test_the_last_answer_counts_for_six_hours() -> None:
    subject = Process()
    subject.places.answered("attic", "m", FIRST)
    subject.now += 1
    subject.places.answered("pc", "m", FIRST)
    assert subject.find() == ("pc", 500)
    subject.now += 7 * 3600
    assert subject.find() is None


def test_what_is_passed_on_is_known_elsewhere_and_only_with_the_secret() -> None:
    one, two, stranger = Process(), Process(), Process(b"guessed")
    one.places.answered("attic", "m", FIRST)
    [answered] = one.answered
    assert answered.mark != 2
    for each in (two, stranger):
        each.places.remember(answered)
        each.places.remember(answered)
        assert (each.answered, each.remembered) == ([], [answered])
    assert two.find() == ("attic", 500)
    assert stranger.find() is None
    later = Process()
    for answered in two.places.latest(10):
        later.places.remember(answered)
    assert later.find() == ("attic", 500)


def test_an_older_answer_changes_nothing() -> None:
    one, two = Process(), Process()
    one.places.answered("attic", "m", FIRST)
    two.now += 1
    two.places.answered("pc", "m", FIRST)
    two.places.remember(one.answered[0])
    assert two.find() == ("pc", 500)


def test_the_latest_are_kept_and_passed_on() -> None:
    subject = Process()
    for number in range(20_500):
        subject.places.answered("pc", "m", PromptIdentity(marks=((number, 10),)))
    assert subject.find(PromptIdentity(marks=((0, 10),))) is None
    assert subject.find(PromptIdentity(marks=((20_499, 10),))) == ("pc", 10)
    assert subject.places.latest(2) == tuple(subject.answered[-2:])


def test_hosts_without_an_address_and_prompts_without_marks_are_left_out() -> None:
    subject = Process()
    subject.places.answered("local", "m", FIRST)
    subject.places.answered("pc", "m", PromptIdentity("anna"))
    assert (subject.answered, subject.find()) == ([], None)
