"""Which conversation is in which slot of an engine, and which slot the next request gets. Decides; does nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

import msgspec

from hostler.supervisor.contract import PromptIdentity

#: A request continues a conversation if it shares at least this part of it. It then takes the place of its earlier state.
CONTINUES: Final = 0.5

#: A new conversation begins with the state of another one if they share at least so many bytes: instructions and tools.
WORTH_COPYING: Final = 2048

#: Conversations of fewer bytes are not saved: they are read again as fast.
WORTH_SAVING: Final = 1024


class KeptConversation(msgspec.Struct, frozen=True):
    """A conversation in a slot or a file: `name` stays the same while it goes on, `prompt` is its last request."""

    name: str
    prompt: PromptIdentity

    @property
    def size(self) -> int:
        """The bytes of its last request's prompt."""
        return self.prompt.marks[-1][1] if self.prompt.marks else 0


class SlotPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The slot for a request, and what has to be moved before: `save` the states of these slots, in this order, then `load`
    the saved conversation of that name into `slot`. `continues`: the request goes on with a known conversation."""

    slot: int
    continues: bool = False
    save: tuple[tuple[int, KeptConversation], ...] = ()
    load: str = ""


class _Slot:
    def __init__(self) -> None:
        self.held: KeptConversation | None = None
        self.busy = False
        self.changed = False
        self.used_at = 0.0


class SlotTable:
    """The slots of one engine. `saved` are conversations in files, the oldest first, at most `max_saved` of them."""

    def __init__(self, parallel: int, *, saved: Iterable[KeptConversation] = (), max_saved: int = 200) -> None:
        self._slots = [_Slot() for _ in range(parallel)]
        self._saved = {each.name: each for each in saved}
        self._max_saved = max_saved
        self._names = itertools.count(1)

    def restore(self, number: int, conversation: KeptConversation) -> None:
        """The engine began with this conversation in a slot."""
        if number < len(self._slots):
            self._slots[number].held = conversation
            self._slots[number].changed = True

    def held(self, number: int) -> KeptConversation | None:
        """The conversation in a slot."""
        return self._slots[number].held if number < len(self._slots) else None

    def assign(self, prompt: PromptIdentity, now: float) -> SlotPlan | None:
        """A slot for the request, which is busy until `release`; `None` if all are."""
        idle = [number for number, slot in enumerate(self._slots) if not slot.busy]
        if not idle:
            return None
        hot = max(idle, key=lambda number: self._shared(number, prompt))
        held = self._slots[hot].held
        cold = max(self._saved.values(), key=lambda kept: shared_bytes(kept.prompt, prompt), default=None)
        shared_hot = self._shared(hot, prompt)
        shared_cold = 0 if cold is None else shared_bytes(cold.prompt, prompt)
        if held is not None and shared_hot >= shared_cold and continues(held, prompt):
            plan, name = SlotPlan(slot=hot, continues=True), held.name
        elif cold is not None and shared_cold > shared_hot and continues(cold, prompt):
            plan, name = msgspec.structs.replace(self._make_room(idle, load=cold.name), continues=True), cold.name
        elif cold is not None and shared_cold > shared_hot and shared_cold >= WORTH_COPYING:
            plan, name = self._make_room(idle, load=cold.name), self._new_name()
        elif shared_hot >= WORTH_COPYING:
            plan, name = self._make_room(idle, copy=hot), self._new_name()
        else:
            plan, name = self._make_room(idle), self._new_name()
        for number, kept in plan.save:
            self._add_saved(kept)
            self._slots[number].changed = False
        taken = self._slots[plan.slot]
        taken.held, taken.busy, taken.used_at = KeptConversation(name, prompt), True, now
        return plan

    def release(self, number: int, now: float) -> None:
        """The request in this slot has ended."""
        slot = self._slots[number]
        slot.busy, slot.changed, slot.used_at = False, True, now

    def forget_saved(self, name: str) -> None:
        """There is no file of this conversation."""
        self._saved.pop(name, None)

    def _make_room(self, idle: list[int], *, load: str = "", copy: int | None = None) -> SlotPlan:
        """The slot that was not used for the longest time, with its state saved; empty ones come first."""
        number = min(idle, key=lambda each: (self._slots[each].held is not None, self._slots[each].used_at))
        sources = [number]
        if copy is not None and copy != number:
            # First, while it is idle: its own next request would have to be awaited.
            sources.insert(0, copy)
            held = self._slots[copy].held
            load = "" if held is None else held.name
        save = tuple(
            (each, held)
            for each in sources
            if (held := self._slots[each].held) is not None
            and (self._slots[each].changed or held.name not in self._saved)
            and held.size >= WORTH_SAVING
        )
        return SlotPlan(slot=number, save=save, load=load)

    def _shared(self, number: int, prompt: PromptIdentity) -> int:
        held = self._slots[number].held
        return 0 if held is None else shared_bytes(held.prompt, prompt)

    def _add_saved(self, kept: KeptConversation) -> None:
        self._saved.pop(kept.name, None)
        self._saved[kept.name] = kept
        while len(self._saved) > self._max_saved:
            del self._saved[next(iter(self._saved))]

    def _new_name(self) -> str:
        known = self._saved.keys() | {slot.held.name for slot in self._slots if slot.held is not None}
        return next(name for number in self._names if (name := f"c{number}") not in known)


def shared_bytes(one: PromptIdentity, other: PromptIdentity) -> int:
    """How many bytes both prompts certainly have in common, from their beginning."""
    marks = {mark for mark, _ in one.marks}
    return next((size for mark, size in reversed(other.marks) if mark in marks), 0)


def continues(kept: KeptConversation, prompt: PromptIdentity) -> bool:
    """Whether the request goes on with the conversation, perhaps after a part of it was changed.

    Instructions and first message must be the same: agents of one session share its id and often their instructions.
    """
    shared, marks = shared_bytes(kept.prompt, prompt), kept.prompt.marks
    # The first mark is after the instructions, the second after the first message.
    if not marks or shared < max(1, marks[:2][-1][1]):
        return False
    if prompt.id and kept.prompt.id:
        return prompt.id == kept.prompt.id
    return shared >= CONTINUES * kept.size
