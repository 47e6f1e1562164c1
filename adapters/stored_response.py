"""What is kept of answers: responses with the input they answered, so that later requests can refer to both, and streams
that outlive their client's connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """`body` is the response as its client received it, `input` what it answered, after the response `previous`.

    `output` are the items of the body by their ids. `at` is in seconds since the epoch. `complete`: the input is there; it
    is left out if it is large.
    """

    id: str
    at: float
    body: msgspec.Raw
    input: tuple[msgspec.Raw, ...] = ()
    output: dict[str, msgspec.Raw] = {}
    previous: str | None = None
    complete: bool = True


class StoredResponses(Protocol):
    """The stored responses of one client."""

    def find(self, response_id: str) -> StoredResponse | None: ...

    def find_item(self, item_id: str) -> msgspec.Raw | None: ...

    def is_foreign(self, an_id: str) -> bool:
        """Whether this is the id of a response or an item that only other clients have."""
        ...

    def history(self, response_id: str) -> Sequence[StoredResponse] | None:
        """The response and those before it, oldest first; `None` if one of them is not stored, or not completely."""
        ...


class StreamInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that can be resumed. Times in seconds since the epoch, `completed_at` 0 while it goes on."""

    conversation: str
    is_done: bool
    total_bytes: int
    started_at: int
    completed_at: int
