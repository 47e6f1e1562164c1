"""The ids of files and batches. They say when, and in a cluster at which gateway, what they name was created."""

from __future__ import annotations

import re
import secrets
from typing import Final

FILE_PREFIX: Final = "file-hst-"
BATCH_PREFIX: Final = "batch_hst_"
MESSAGE_BATCH_PREFIX: Final = "msgbatch_hst_"

_PREFIXES = "|".join((FILE_PREFIX, BATCH_PREFIX, MESSAGE_BATCH_PREFIX))
#: The gateway, and the moment in microseconds. Earlier ids have none.
_ID = re.compile(rf"(?:{_PREFIXES})(?:out|err)?(?P<gateway>[0-9a-f]{{16}})?(?P<moment>[0-9a-f]{{14}})?[0-9a-f]{{24}}")


def new_id(prefix: str, gateway: str, now: float) -> str:
    """An id that cannot be guessed. `gateway` is the id of this gateway in its cluster, empty without a cluster."""
    return f"{prefix}{gateway}{round(now * 1e6):014x}{secrets.token_hex(12)}"


def result_id(kind: str, batch_id: str, now: float) -> str:
    """The id of a file with results of a batch: `out` or `err`."""
    return new_id(f"{FILE_PREFIX}{kind}", gateway_of(batch_id), now)


def gateway_of(identifier: str) -> str:
    """The gateway that has what an id names; empty if the id does not say."""
    found = _ID.fullmatch(identifier)
    return "" if found is None else found["gateway"] or ""


def moment_of(identifier: str) -> int | None:
    """When what an id names was created, in microseconds since the epoch; `None` if the id does not say."""
    found = _ID.fullmatch(identifier)
    return None if found is None or found["moment"] is None else int(found["moment"], 16)
