"""A file that is being downloaded, and may be continued later: its bytes, and what they are part of."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Origin(msgspec.Struct, frozen=True):
    """`checksum` is the SHA-256 that was announced for the whole file, `etag` the tag of the server that sends it."""

    checksum: str = ""
    etag: str = ""


class PartialFile:
    """The beginning of a download in `file`, with a note beside it if the server can continue it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._note = file.with_name(file.name + ".origin")
        self._origin = self._read()

    @property
    def can_continue(self) -> bool:
        """Whether what has arrived is of use for another request."""
        return self._origin is not None

    @property
    def size(self) -> int:
        """Bytes that are there and can be continued."""
        try:
            return self.file.stat().st_size if self.can_continue else 0
        except OSError:
            return 0

    def range_headers(self) -> dict[str, str]:
        """The headers of a request for the rest."""
        size = self.size
        if not size or self._origin is None:
            return {}
        # A server that has another file by now sends the whole one.
        validator = {"If-Range": self._origin.etag} if self._origin.etag else {}
        return {"Range": f"bytes={size}-", **validator}

    def begin(self, status: int, headers: Mapping[str, str], checksum: str) -> int | None:
        """Note what is about to arrive. Returns where it starts in the file; `None`, and forgets what is there, if it is the
        rest of another file."""
        checksum = checksum if _SHA256.fullmatch(checksum) else ""
        etag = headers.get("ETag", "")
        before, start = self._origin, 0
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if status == 206:
            if match is not None:
                start = int(match[1])
            if (self.size and match is None) or (start and not self._is_rest(before, start, checksum, etag)):
                self.discard()
                return None
        origin = _Origin(checksum, "" if etag[:2] == "W/" else etag)
        continues = status == 206 or headers.get("Accept-Ranges", "").lower() == "bytes"
        self._origin = origin if continues and origin != _Origin() else None
        with contextlib.suppress(OSError):
            if self._origin is None:
                self._note.unlink(missing_ok=True)
            else:
                self._note.write_bytes(msgspec.json.encode(self._origin))
        return start

    def _is_rest(self, before: _Origin | None, start: int, checksum: str, etag: str) -> bool:
        """Whether what starts there belongs to the file that was begun. Servers may not know `If-Range`."""
        if before is None or start > self.size or before.checksum != checksum:
            return False
        return bool(checksum) or not etag or not before.etag or etag == before.etag

    def discard(self) -> None:
        """Forget what has arrived."""
        self._origin = None
        self.file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _read(self) -> _Origin | None:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=_Origin) if self.file.exists() else None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
