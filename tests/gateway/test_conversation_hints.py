"""What other gateways know of a conversation, beside what hosts say."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from hostler.gateway.conversation_hints import with_hint
from hostler.gateway.host_ranking import ranked_names
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.scheduling.views import NO_OFFER, HostOffer, ServiceDistance

PROMPT = PromptIdentity(marks=((1, 40_000),))
FREE = HostOffer(distance=ServiceDistance(steps=0), phase="ready")
KNOWN = msgspec.structs.replace(FREE, read_before=40_000)


class Hints:
    """One conversation is at one host."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.asked: list[list[str]] = []

    def answered(self, backend: str, model: str, prompt: PromptIdentity) -> None:
        raise AssertionError

    def find(self, model: str, prompt: PromptIdentity, backends: Collection[str]) -> tuple[str, int] | None:
        self.asked.append(list(backends))
        return (self.backend, 40_000) if self.backend in backends else None


def test_a_host_that_holds_the_conversation_comes_first_unless_it_is_busy() -> None:
    offers = {"one": FREE, "two": FREE}
    hinted = with_hint(offers, "m", PROMPT, Hints("two"))
    assert hinted == {"one": FREE, "two": KNOWN}
    assert ranked_names(["one", "two"], hinted, replica_wait_s=5.0) == ["two", "one"]
    busy = msgspec.structs.replace(FREE, distance=ServiceDistance(steps=2, wait_s=60.0, load=4.0))
    hinted = with_hint({"one": FREE, "two": busy}, "m", PROMPT, Hints("two"))
    assert ranked_names(["one", "two"], hinted, replica_wait_s=5.0) == ["one", "two"]


@pytest.mark.parametrize("prompt", [None, PromptIdentity("anna")])
def test_a_request_that_continues_nothing_needs_no_hint(prompt: PromptIdentity | None) -> None:
    hints = Hints("two")
    assert with_hint({"two": FREE}, "m", prompt, hints) == {"two": FREE}
    assert hints.asked == []


def test_what_a_host_says_decides() -> None:
    hints = Hints("two")
    offers = {"one": KNOWN, "two": FREE}
    assert with_hint(offers, "m", PROMPT, hints) == offers
    assert hints.asked == []


def test_only_hosts_that_can_serve_it_are_asked_about() -> None:
    hints = Hints("two")
    offers = {"one": FREE, "two": NO_OFFER}
    assert with_hint(offers, "m", PROMPT, hints) == offers
    assert with_hint({"two": NO_OFFER}, "m", PROMPT, hints) == {"two": NO_OFFER}
    assert hints.asked == [["one"]]


def test_there_are_none_without_a_cluster() -> None:
    assert with_hint({"one": FREE}, "m", PROMPT, None) == {"one": FREE}
