"""llama-server's requests about streams that outlive their client's connection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.canonical import Origin, StoredRequest
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody
from hostler.adapters.llamacpp.errors import respond
from hostler.adapters.stored_response import StreamInfo

_OFFSET = re.compile("[0-9]{1,18}")
_MAX_IDS = 1000


class _Lookup(msgspec.Struct):
    conversation_ids: list[Any] = []


def decode(origin: Origin, kind: str) -> StoredRequest:
    """The request. Raises `BadRequest` without a conversation, and for an offset that is none."""
    if kind == "lookup":
        JsonBody(origin.body)
        try:
            given = msgspec.json.decode(origin.body, type=_Lookup).conversation_ids
        except msgspec.ValidationError as error:
            raise BadRequest(f"invalid body: {error}", param="conversation_ids") from None
        ids = tuple(each for each in given[:_MAX_IDS] if isinstance(each, str) and each)
        return StoredRequest(origin=origin, kind=kind, ids=ids)
    asked = parse_qs(origin.query)
    conversation = asked.get("conv_id", [""])[0]
    if not conversation:
        raise BadRequest("Missing conversation id in path", param="conv_id")
    start = asked.get("from", ["0"])[0]
    if kind == "follow" and not _OFFSET.fullmatch(start):
        raise BadRequest("Invalid 'from' offset", param="from")
    return StoredRequest(origin=origin, kind=kind, id=conversation, start=int(start) if kind == "follow" else 0)


def stream_info(request: StoredRequest, found: Sequence[StreamInfo]) -> WireResponse:
    """The streams that were found; nothing after one was stopped."""
    if request.kind == "stop":
        return WireResponse(status=204)
    return respond(
        [
            {
                "conversation_id": each.conversation,
                "is_done": each.is_done,
                "total_bytes": each.total_bytes,
                "started_at": each.started_at,
                "completed_at": each.completed_at,
            }
            for each in found
        ]
    )
