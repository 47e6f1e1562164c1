"""The headers that describe how a request was served."""

from __future__ import annotations

from fakes.requests import make_context

from hostler.gateway.context import Target
from hostler.gateway.serving_headers import ServingHeaders

TARGET = Target(backend="pc", model="m", name_there="m")


def test_the_id_is_known_before_the_request_is_decoded() -> None:
    assert ServingHeaders("req-1")() == [(b"x-request-id", b"req-1")]


def test_target_hop_and_times_are_those_of_all_attempts() -> None:
    headers = ServingHeaders("req-1")
    context = headers.context = make_context()
    context.begin_attempt(TARGET, hop=0, now=0.0).queue_s = 1.5
    context.begin_attempt(TARGET, hop=1, now=2.0).switch_s = 0.25
    shown = dict(headers())
    assert shown[b"x-hostler-hop"] == b"1"
    assert headers(early=True) == [(b"x-request-id", b"req-1")]
    assert (shown[b"x-hostler-queue-ms"], shown[b"x-hostler-switch-ms"]) == (b"1500", b"250")


def test_a_reason_is_one_short_line_of_latin_1() -> None:
    headers = ServingHeaders("req-1")
    context = headers.context = make_context()
    context.begin_attempt(TARGET, hop=1, now=0.0)
    context.reason = "cloud:\r\n x\N{SNOWMAN}" + "y" * 300
    reason = dict(headers())[b"x-hostler-reason"]
    assert len(reason) <= 200
    assert b"\n" not in reason and b"\r" not in reason
