"""Which slot a request gets."""

from __future__ import annotations

from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.slot_table import KeptConversation, SlotPlan, SlotTable

#: Bytes of the instructions, and of each message.
INSTRUCTIONS, MESSAGE = 4000, 1000


def prompt(*messages: str, name: str = "", instructions: str = "agent", size: int = INSTRUCTIONS) -> PromptIdentity:
    """A prompt with these instructions and messages."""
    parts = [instructions, *messages]
    marks = tuple((hash(tuple(parts[: end + 1])) % 2**40, size + MESSAGE * end) for end in range(len(parts)))
    return PromptIdentity(name, marks)


class Slots:
    """A table whose requests end at once."""

    def __init__(self, parallel: int, saved: tuple[KeptConversation, ...] = ()) -> None:
        self.table = SlotTable(parallel, saved=saved)
        self.now = 0.0

    def ask(self, wanted: PromptIdentity) -> SlotPlan:
        self.now += 1
        plan = self.table.assign(wanted, self.now)
        assert plan is not None
        self.table.release(plan.slot, self.now)
        return plan


def moves(plan: SlotPlan) -> tuple[int, list[tuple[int, str]], str]:
    return plan.slot, [(slot, kept.name) for slot, kept in plan.save], plan.load


def test_a_conversation_stays_in_its_slot() -> None:
    slots = Slots(2)
    for messages in (["a"], ["a", "b"], ["a", "b", "c"]):
        assert moves(slots.ask(prompt(*messages))) == (0, [], "")
        assert moves(slots.ask(prompt(*messages, instructions="other"))) == (1, [], "")


def test_a_conversation_without_a_slot_is_brought_back_and_the_coldest_one_saved() -> None:
    slots = Slots(1)
    slots.ask(prompt("a", instructions="one"))
    assert moves(slots.ask(prompt("b", instructions="two"))) == (0, [(0, "c1")], "")
    assert moves(slots.ask(prompt("a", "more", instructions="one"))) == (0, [(0, "c2")], "c1")
    assert moves(slots.ask(prompt("b", "more", instructions="two"))) == (0, [(0, "c1")], "c2")


def test_a_changed_end_still_continues_the_conversation() -> None:
    slots = Slots(2)
    slots.ask(prompt("a", "b", "thoughts"))
    assert moves(slots.ask(prompt("a", "b", "answer", "next"))) == (0, [], "")


def test_a_new_conversation_begins_with_the_instructions_of_another_one() -> None:
    slots = Slots(2)
    slots.ask(prompt("a", "b", "c", "d", "e", "f", "g"))
    assert moves(slots.ask(prompt("x"))) == (1, [(0, "c1")], "c1")


def test_the_conversation_that_is_copied_is_saved_before_the_one_that_leaves() -> None:
    slots = Slots(2)
    slots.ask(prompt("b", instructions="other"))
    slots.ask(prompt("a"))
    assert moves(slots.ask(prompt("x"))) == (0, [(1, "c2"), (0, "c1")], "c2")


def test_short_instructions_are_not_worth_a_copy() -> None:
    slots = Slots(2)
    slots.ask(prompt("a", "b", "c", size=100))
    assert moves(slots.ask(prompt("x", size=100))) == (1, [], "")


def test_a_short_conversation_is_not_saved() -> None:
    slots = Slots(1)
    slots.ask(prompt(size=100))
    assert moves(slots.ask(prompt("b", instructions="two"))) == (0, [], "")


def test_an_unchanged_conversation_is_saved_once() -> None:
    slots = Slots(1)
    slots.ask(prompt("a", instructions="one"))
    slots.ask(prompt("b", instructions="two"))
    plan = slots.table.assign(prompt("a", "c", instructions="one"), 9.0)
    assert plan is not None
    assert plan.load == "c1"


def test_agents_with_the_same_instructions_have_conversations_of_their_own() -> None:
    slots = Slots(2)
    for name in ("", "session"):
        first, second = slots.ask(prompt("a", name=name)), slots.ask(prompt("b", name=name))
        assert first.slot != second.slot
        assert moves(slots.ask(prompt("a", "c", name=name))) == (first.slot, [], "")


def test_agents_of_one_session_have_conversations_of_their_own() -> None:
    slots = Slots(2)
    slots.ask(prompt("a", name="session"))
    assert slots.ask(prompt("b", name="session", instructions="subagent")).slot == 1
    assert moves(slots.ask(prompt("a", "c", name="session"))) == (0, [], "")


def test_another_session_does_not_take_over_the_same_words() -> None:
    slots = Slots(2)
    slots.ask(prompt("a", "b", name="one"))
    assert slots.ask(prompt("a", "b", name="two")).slot == 1


def test_a_session_keeps_its_slot_when_most_of_it_was_rewritten() -> None:
    slots = Slots(2)
    slots.ask(prompt("a", *"bcdefghij", name="session", size=10))
    assert moves(slots.ask(prompt("a", "summary", name="session", size=10))) == (0, [], "")


def test_busy_slots_are_not_given_away() -> None:
    table = SlotTable(2)
    first, second = table.assign(prompt("a"), 1.0), table.assign(prompt("a"), 2.0)
    assert first is not None
    assert second is not None
    assert {first.slot, second.slot} == {0, 1}
    assert table.assign(prompt("a"), 3.0) is None
    table.release(first.slot, 4.0)
    third = table.assign(prompt("a", "b"), 5.0)
    assert third is not None
    assert third.slot == first.slot


def test_conversations_of_the_last_engine_are_known() -> None:
    slots = Slots(2, saved=(KeptConversation("c7", prompt("cold")),))
    slots.table.restore(1, KeptConversation("c8", prompt("hot")))
    slots.table.restore(5, KeptConversation("c9", prompt("of a slot that is no more")))
    assert slots.ask(prompt("hot", "more")).slot == 1
    assert slots.ask(prompt("cold", "more")).load == "c7"
    assert slots.table.held(5) is None


def test_only_so_many_saved_conversations_are_remembered() -> None:
    slots = Slots(1)
    slots.table = SlotTable(1, max_saved=2)
    for number in range(4):
        slots.ask(prompt("a", instructions=str(number)))
    # The first one was forgotten, the last one is still in the slot, and saved for this request.
    assert slots.ask(prompt("a", "b", instructions="0")).load == ""
    assert slots.ask(prompt("a", "b", instructions="3")).load == "c4"


def test_a_file_that_is_gone_is_not_asked_for() -> None:
    slots = Slots(1, saved=(KeptConversation("c7", prompt("cold")),))
    slots.table.forget_saved("c7")
    assert slots.ask(prompt("cold", "more")).load == ""
