"""The figures of a bucket."""

from __future__ import annotations

from hostler.gateway.telemetry.history_figures import Bucket, RequestFigures, bucket_of


def test_a_bucket_without_requests_has_no_figures() -> None:
    assert bucket_of(5.0, [], [], memory=None, waiting=None) == Bucket(at=5.0)


def test_a_bucket_has_the_medians_and_the_longest_waits() -> None:
    requests = [
        RequestFigures(at=5.0, seconds=2.0, outcome="ok", queue_s=1.0, first_token_s=1.0, completion_tokens=11),
        RequestFigures(at=6.0, seconds=4.0, outcome="broken", queue_s=3.0, first_token_s=2.0, completion_tokens=1),
        RequestFigures(at=7.0, seconds=1.0, outcome="cancelled"),
    ]
    assert bucket_of(5.0, requests, [7.0, 2.0], memory=4, waiting=1) == Bucket(
        at=5.0, requests=3, failed=1, first_token_s=2.0, first_token_p95_s=2.0, tokens_per_s=10.0, queue_s=3.0,
        switches=2, switch_s=7.0, memory=4, waiting=1,
    )  # fmt: skip
