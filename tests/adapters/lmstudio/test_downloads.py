"""Downloads in LM Studio's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.canonical import Download, FindDownloads, Origin, StartDownload
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody
from hostler.adapters.lmstudio.downloads import decode_download, downloads_info

ORIGIN = Origin(wire="lmstudio", operation="download")
RUNNING = Download(
    id="job_493c7c9ded", status="downloading", completed=948, total=2_279_145_003, bytes_per_second=7834.7,
    started_at=1759505603.496, estimated_end=1759796507.03,
)  # fmt: skip
COMPLETED = Download(
    id="job_1", status="completed", completed=7, total=7, started_at=1759505603.0, ended_at=1759505604.5
)
FAILED = Download(id="job_2", status="failed", completed=3, total=7, started_at=1759505603.0, error="disk full")


def decoded(**body: Any) -> StartDownload:
    return decode_download(ORIGIN, JsonBody(json.dumps(body).encode()), str(body["model"]))


def shown(*found: Download, of: str | None) -> Any:
    return json.loads(downloads_info(FindDownloads(origin=ORIGIN, id=of), found).body)


def test_a_running_download_has_its_speed_and_the_time_of_its_end() -> None:
    assert shown(RUNNING, of="job_493c7c9ded") == {
        "job_id": "job_493c7c9ded",
        "status": "downloading",
        "total_size_bytes": 2279145003,
        "downloaded_bytes": 948,
        "bytes_per_second": 7834.7,
        "estimated_completion": "2025-10-07T00:21:47.030Z",
        "started_at": "2025-10-03T15:33:23.496Z",
    }


def test_an_ended_one_has_its_end_or_its_reason() -> None:
    completed, failed = shown(COMPLETED, of="job_1"), shown(FAILED, of="job_2")
    assert (completed["status"], completed["completed_at"]) == ("completed", "2025-10-03T15:33:24.500Z")
    assert (failed["status"], failed["error"]) == ("failed", "disk full")
    assert "completed_at" not in failed and "bytes_per_second" not in completed


def test_one_without_an_id_was_there_already() -> None:
    answer = downloads_info(StartDownload(origin=ORIGIN, model="a"), (Download(),))
    assert json.loads(answer.body) == {"status": "already_downloaded"}


def test_all_downloads_are_in_lists_by_their_status() -> None:
    lists = shown(RUNNING, COMPLETED, FAILED, of=None)
    assert {name: [each["job_id"] for each in entries] for name, entries in lists.items()} == {
        "downloading": ["job_493c7c9ded"], "paused": [], "completed": ["job_1"], "failed": ["job_2"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "quantization", "reference"),
    [
        ("https://huggingface.co/org/repo-GGUF", None, "hf.co/org/repo-GGUF"),
        ("https://huggingface.co/org/repo-GGUF", "Q4_K_M", "hf.co/org/repo-GGUF:Q4_K_M"),
        ("hf.co/org/repo:Q8_0", "Q4_K_M", "hf.co/org/repo:Q4_K_M"),
        (
            "https://huggingface.co/org/repo/blob/main/a-Q4.gguf", None,
            "https://huggingface.co/org/repo/blob/main/a-Q4.gguf",
        ),
        ("qwen/qwen3-4b-2507", None, None),
        ("smollm2", "Q4_K_M", None),
    ],
)  # fmt: skip
def test_links_name_a_model_of_the_hub(model: str, quantization: str | None, reference: str | None) -> None:
    request = decoded(model=model, quantization=quantization)
    assert (request.model, request.reference, request.quantization) == (model, reference, quantization)


def test_a_link_without_a_repository_is_rejected() -> None:
    with pytest.raises(BadRequest, match="organisation/repository"):
        decoded(model="https://huggingface.co/nothing")
