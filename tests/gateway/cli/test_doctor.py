"""How the doctor's results and routes are shown."""

from __future__ import annotations

from hostler.gateway.cli.doctor import route_rows


def test_a_skipped_hop_says_for_how_long() -> None:
    hop = {"backend": "cloud", "name_there": "m", "local": False, "words": "is paused after failures"}
    hops = [{**hop, "retry_in_s": 12.2}, {**hop, "words": "", "retry_in_s": 0.0}]
    assert [row[4] for row in route_rows({"hops": hops, "first": "cloud"})] == [
        "is paused after failures (for another 12 s)",
        "would answer",
    ]
