"""Runs of events that differ in nothing but their piece of text: read at once, without an object for each of them."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from hostler.adapters.json_body import NOT_JSON

#: The place of the text in an event that is nothing but the next piece of a message.
_PIECE: Final = re.compile(rb'"delta":\s*\{\s*"(content|reasoning_content)":\s*("(?:[^"\\]|\\.)*")')

#: Longer events, in bytes, are few: it would take longer to find their text than to read each.
_LONG: Final = 4096

#: So many events in a row are remembered in vain: some servers send a field that differs in each.
_TRIES: Final = 4

_BLANK: Final = b"\n\n"

#: For 64 events 8 µs, `bytes.split` 14.
_split: Final = re.compile(_BLANK).split

_decode_texts = msgspec.json.Decoder(list[str]).decode


class TextRun:
    """Finds the events that follow the one given to `learn` and are equal to it except for their text.

    `field` is the field of the text.
    """

    __slots__ = ("_after", "_before", "_between", "_tries", "field")

    def __init__(self) -> None:
        self._before = self._after = self._between = b""
        self._tries = _TRIES
        self.field = ""

    def learn(self, event: bytes) -> bool:
        """Remember the bytes around the event's piece of text. Whether it has one, and it may be of use."""
        self.forget()
        if not self._tries or len(event) > _LONG or not event.endswith(_BLANK):
            return False
        matches = list(_PIECE.finditer(event))
        if len(matches) != 1:
            return False
        match = matches[0]
        self._tries -= 1
        self._before, self._after, self.field = event[: match.start(2)], event[match.end(2) :], match[1].decode()
        self._between = self._after + self._before
        return True

    def forget(self) -> None:
        """Find nothing until the next `learn`."""
        self._before = self._after = self._between = b""

    def texts(self, block: bytes, at: int = 0) -> tuple[list[str], int]:
        """The texts of the events that begin at `at`, and where the last of them ends; none if others come between them."""
        before, after = self._before, self._after
        if not before or not block.startswith(before, at):
            return [], at
        end = len(block)
        if block.endswith(after) and block.find(_BLANK, at) == end - len(_BLANK):
            pieces = [block[at + len(before) : -len(after)]]
        else:
            events = _split(block[at:])
            end -= len(events.pop())
            while events and not events[-1].startswith(before):
                end -= len(events.pop()) + len(_BLANK)
            start, stop = len(before), len(_BLANK) - len(after)
            pieces = [event[start:stop] for event in events]
        try:
            # The line feeds keep two broken texts from being read as one.
            texts = _decode_texts(b"[%b]" % b",\n".join(pieces))
        except NOT_JSON:
            texts = []
        # Put together again they must be the same bytes. To search for what is between two texts would cost more.
        if len(texts) != len(pieces) or not all(texts) or before + self._between.join(pieces) + after != block[at:end]:
            self.forget()
            return [], at
        self._tries = _TRIES
        return texts, end
