"""Downloads in the form of LM Studio's v1 API."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.canonical import Download, FindDownloads, Origin, StartDownload
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody
from hostler.profiles.hub_reference import hub_link
from hostler.profiles.sources import SourceError

#: The lists of a report of all downloads. Nothing is ever paused here.
_LISTS = ("downloading", "paused", "completed", "failed")


def decode_download(origin: Origin, body: JsonBody, model: str) -> StartDownload:
    """The request to download a model: one of the server's own, or a link to the Hugging Face Hub."""
    quantization = body.text("quantization")
    try:
        reference = hub_link(model, quantization)
    except SourceError as error:
        raise BadRequest(f"`model`: {error}.", param="model") from None
    return StartDownload(origin=origin, model=model, reference=reference, quantization=quantization)


def downloads_info(request: StartDownload | FindDownloads, found: Sequence[Download]) -> WireResponse:
    """One download, or all of them by their status."""
    if isinstance(request, FindDownloads) and request.id is None:
        lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
        for download in found:
            lists[download.status].append(_entry(download))
        return WireResponse(body=msgspec.json.encode(lists))
    return WireResponse(body=msgspec.json.encode(_entry(found[0])))


def _entry(download: Download) -> dict[str, Any]:
    if download.id is None:
        return {"status": "already_downloaded"}
    entry: dict[str, Any] = {
        "job_id": download.id,
        "status": download.status,
        "total_size_bytes": download.total,
        "downloaded_bytes": download.completed,
        "started_at": _moment(download.started_at),
    }
    if download.status == "downloading":
        entry["bytes_per_second"] = download.bytes_per_second
        if download.estimated_end is not None:
            entry["estimated_completion"] = _moment(download.estimated_end)
    elif download.status == "completed":
        entry["completed_at"] = _moment(download.ended_at or download.started_at)
    else:
        entry["error"] = download.error
    return entry


def _moment(at: float) -> str:
    """As in JavaScript: to the millisecond, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
