"""Has this gateway admit the keys that its cluster shares, or says why it does not."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from hostler.gateway.auth.keys import KeyFileError, KeyRing, parse_keys
from hostler.gateway.shared_files import Refused, write_shared

_NEEDS_NO_KEYS = (
    "this gateway serves its own machine without keys; create one there with `hostler keys add NAME`, and restart it"
)


class SharedKeysFile:
    """`file` is read by `keys` beside the gateway's own file, whose keys win. `None`: no keys are needed."""

    def __init__(self, file: Path, keys: KeyRing | None) -> None:
        self._file = file
        self._keys = keys

    async def apply(self, text: str) -> str:
        """See `shared_files.Apply`."""
        try:
            records = parse_keys(text, "keys")
        except KeyFileError as error:
            raise Refused(str(error)) from error
        if self._keys is None:
            if not records:
                return ""
            raise Refused(_NEEDS_NO_KEYS)
        await anyio.to_thread.run_sync(write_shared, self._file, text)
        own = {each.name for each in self._keys.own()}
        both = [each.name for each in records if each.name in own]
        return f"its own file has {', '.join(both)}" if both else ""
