"""Which conversations a host has answered lately: their prompts are probably still in its engines' caches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from hostler.supervisor.contract import PromptIdentity

#: How many conversations are remembered of each model, and of how many models.
_MAX_CONVERSATIONS: Final = 64
_MAX_MODELS: Final = 32


class AnsweredConversations:
    """The ends of the prompts that were answered, by model, the latest last. `published` fits into a frame."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[int, None]] = {}

    def add(self, model: str, prompt: PromptIdentity) -> None:
        """The model has answered this prompt."""
        if not prompt.marks:
            return
        ends = self._ends.pop(model, {})
        self._ends[model] = ends
        # The next prompt of the conversation takes the place of this one.
        for mark, _ in prompt.marks:
            ends.pop(mark, None)
        ends[prompt.marks[-1][0]] = None
        _keep_latest(ends, _MAX_CONVERSATIONS)
        _keep_latest(self._ends, _MAX_MODELS)

    def published(self) -> dict[str, tuple[int, ...]]:
        """The ends of each model's prompts."""
        return {model: tuple(ends) for model, ends in self._ends.items()}

    def ends(self, model: str) -> Collection[int]:
        """The ends of one model's prompts."""
        return self._ends.get(model, {})


def _keep_latest(kept: dict[str, dict[int, None]] | dict[int, None], most: int) -> None:
    while len(kept) > most:
        del kept[next(iter(kept))]  # type: ignore[arg-type]  # a key of this very dictionary


def read_before(prompt: PromptIdentity | None, ends: Collection[int]) -> int:
    """How many bytes of a prompt were answered before, from its beginning. `ends` are those of the prompts answered."""
    if prompt is None or not ends:
        return 0
    return next((size for mark, size in reversed(prompt.marks) if mark in ends), 0)


def as_sets(published: Mapping[str, Collection[int]]) -> dict[str, frozenset[int]]:
    """What was published, to look marks up."""
    return {model: frozenset(ends) for model, ends in published.items()}
