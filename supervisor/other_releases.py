"""Gateways of other releases, which the supervisor refuses: what each side speaks, and which one to update."""

from __future__ import annotations

import logging
import time

import msgspec
from starlette.requests import Request

from hostler import __version__
from hostler.supervisor.auth import RequestRejected, decode_body
from hostler.supervisor.lease_frames import PROTOCOL_VERSION

#: A refused gateway is logged once in this time, in seconds; of so many at most.
_WARN_AGAIN_S = 60.0
_WARNED = 256

logger = logging.getLogger(__name__)


class OtherReleases:
    """Refuses gateways of other releases, and logs each of them now and then."""

    def __init__(self) -> None:
        self._warned: dict[str, float] = {}

    def refusal(self, request: Request, version: str = "0") -> RequestRejected:
        """The refusal of a gateway of another release, which is logged: its own log may be on another machine."""
        peer = request.client.host if request.client is not None else "?"
        now = time.monotonic()
        if now - self._warned.get(peer, -_WARN_AGAIN_S) >= _WARN_AGAIN_S:
            if len(self._warned) >= _WARNED:
                self._warned.clear()
            self._warned[peer] = now
            logger.warning(
                "the gateway at %s is refused: it speaks %s, this supervisor %s; update the %s",
                peer, _spoken(version), _spoken(str(PROTOCOL_VERSION)), _outdated(version),
            )  # fmt: skip
        return RequestRejected(426, "protocol_mismatch", _mismatch_message(version))


class _OldOrder(msgspec.Struct):
    """What only gateways before version 1 send, whatever else there is."""

    epoch: int | None


def is_old_order(content: bytes) -> bool:
    """Whether a body is an operator's request of a gateway before version 1, which has more fields."""
    try:
        decode_body(content, _OldOrder)
    except RequestRejected:
        return False
    return True


def _mismatch_message(version: str) -> str:
    return (
        f"this supervisor (Hostler {__version__}) and the gateway are of different releases: it speaks "
        f"{_spoken(str(PROTOCOL_VERSION))}, the gateway {_spoken(version)}; update the {_outdated(version)}"
    )


def _spoken(version: str) -> str:
    return f"protocol {version[:9]}" if version.isascii() and version.isdecimal() else "no known protocol"


def _outdated(version: str) -> str:
    """Which side to update."""
    older = not version.isascii() or not version.isdecimal() or int(version[:9]) < PROTOCOL_VERSION
    return "gateway" if older else "supervisor"
