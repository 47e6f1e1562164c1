"""Files and batches as values: what is stored of them, whatever protocol they came by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

BatchProtocol = Literal["openai", "anthropic"]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ItemOutcome = Literal["succeeded", "errored", "cancelled", "expired"]

#: Batches in these states still change.
ACTIVE: frozenset[BatchStatus] = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of `owner`: uploaded, or the results of a batch that `source` names. Moments in seconds since the epoch."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float | None = None
    source: str | None = None
    outcomes: tuple[ItemOutcome, ...] = ()


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a line of an input file, from 1, or with the file as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of `owner`, whose requests are sent as those of the client `client`. Moments in seconds since the epoch."""

    id: str
    owner: str
    client: str
    protocol: BatchProtocol
    endpoint: str
    created_at: float
    expires_at: float
    status: BatchStatus = "validating"
    total: int = 0
    input_file: str | None = None
    completion_window: str = "24h"
    metadata: Mapping[str, str] | None = None
    errors: tuple[LineError, ...] = ()
    output_file: str | None = None
    error_file: str | None = None
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    cancelling_at: float | None = None
    ended_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether it has not ended yet."""
        return self.status in ACTIVE


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a batch: `number` is its place in it, `body` what is sent."""

    batch: str
    number: int
    custom_id: str
    model: str
    body: bytes


class ItemResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a request of a batch ended: the status and body of its answer, as sent to a client."""

    outcome: ItemOutcome
    status: int = 0
    request_id: str = ""
    body: msgspec.Raw = msgspec.Raw(b"null")
    code: str = ""
    message: str = ""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a batch's requests by outcome."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    cancelled: int = 0
    expired: int = 0
