"""The ids of files and batches. In a cluster they say which gateway has what they name."""

from __future__ import annotations

import re
import secrets
from typing import Final

FILE_PREFIX: Final = "file-hst-"
BATCH_PREFIX: Final = "batch_hst_"
MESSAGE_BATCH_PREFIX: Final = "msgbatch_hst_"

_PREFIXES = "|".join((FILE_PREFIX, BATCH_PREFIX, MESSAGE_BATCH_PREFIX))
#: `out` and `err` are results of a batch, whose id follows.
_OF_GATEWAY = re.compile(rf"(?:{_PREFIXES})(?:out|err)?([0-9a-f]{{16}})[0-9a-f]{{24}}")


def new_id(prefix: str, gateway: str) -> str:
    """An id that cannot be guessed. `gateway` is the id of this gateway in its cluster, empty without a cluster."""
    return f"{prefix}{gateway}{secrets.token_hex(12)}"


def gateway_of(identifier: str) -> str:
    """The gateway that has what an id names; empty if the id does not say."""
    found = _OF_GATEWAY.fullmatch(identifier)
    return "" if found is None else found[1]
