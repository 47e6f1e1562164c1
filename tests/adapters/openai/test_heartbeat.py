"""Heartbeats and errors inside an OpenAI stream, in a form that no client mistakes for an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters import sse
from hostler.adapters.canonical import Progress
from hostler.adapters.errors import ModelUnavailable

LOADING = Progress(phase="loading", model="b", from_model="a", percent=40.2, eta_s=11.6)
QUEUED = Progress(phase="queued", model="b", position=3, waited_s=2.0)


def chunks(data: bytes) -> list[Any]:
    return [json.loads(found) for _, found in sse.iter_events(data)]


def test_the_first_heartbeat_is_a_comment_and_the_role(chat: Any, start_encoder: Any) -> None:
    heartbeat = start_encoder(chat(stream=True)).heartbeat(LOADING)
    comment, _, rest = heartbeat.partition(b"\n")
    assert comment == b": [hostler] loading b: 40% (12 s left)"
    assert rest.startswith(b"data: ")
    assert rest.endswith(b"\n\n")
    assert chunks(heartbeat)[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_thinking_shows_a_line_and_the_progress(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True))
    encoder.heartbeat(QUEUED)
    heartbeat = chunks(encoder.heartbeat(LOADING))[0]
    assert heartbeat["choices"] == [
        {
            "index": 0,
            "delta": {"reasoning_content": "[hostler] loading b: 40% (12 s left)\n"},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert heartbeat["x_hostler"] == {
        "phase": "loading",
        "model": "b",
        "from": "a",
        "position": None,
        "percent": 40.2,
        "eta_s": 11.6,
    }
    waiting = chunks(encoder.heartbeat(QUEUED))[0]
    assert waiting["choices"][0]["delta"]["reasoning_content"] == "[hostler] queued b: position 3\n"
    assert waiting["x_hostler"]["position"] == 3


def test_a_model_may_have_a_setting_of_its_own(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True))
    encoder.set_progress("off")
    assert encoder.heartbeat(LOADING) == b""
    encoder.set_progress("thinking")
    encoder.heartbeat(LOADING)
    assert b"[hostler] queued" in encoder.heartbeat(QUEUED)
    for_programs = start_encoder(chat(stream=True, n=2), progress="off")
    for_programs.set_progress("thinking")
    for_programs.heartbeat(LOADING)
    assert b"[hostler]" not in for_programs.heartbeat(QUEUED)


@pytest.mark.parametrize(
    ("fields", "setting"),
    [({}, "quiet"), ({"n": 2}, "thinking"), ({"response_format": {"type": "json_object"}}, "thinking")],
)
def test_quiet_has_no_progress_lines(chat: Any, start_encoder: Any, fields: dict[str, Any], setting: str) -> None:
    encoder = start_encoder(chat(stream=True, **fields), progress=setting)
    encoder.heartbeat(LOADING)
    heartbeat = chunks(encoder.heartbeat(LOADING))[0]
    assert heartbeat["choices"][0]["delta"] == {}
    assert heartbeat["x_hostler"]["phase"] == "loading"


def test_comments_are_only_comments(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True), progress="comments")
    assert encoder.heartbeat(LOADING) == b": [hostler] loading b: 40% (12 s left)\n"
    assert encoder.heartbeat(LOADING) == b": \n"  # a sign of life, but the same line is not repeated


def test_no_line_is_repeated_unchanged(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True))
    encoder.heartbeat(LOADING)
    again, other = chunks(encoder.heartbeat(LOADING))[0], chunks(encoder.heartbeat(QUEUED))[0]
    assert again["choices"][0]["delta"] == {}
    assert again["x_hostler"]["phase"] == "loading"
    assert other["choices"][0]["delta"] == {"reasoning_content": "[hostler] queued b: position 3\n"}


def test_programs_learn_the_time_so_far(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True))
    encoder.heartbeat(QUEUED)
    found = chunks(encoder.heartbeat(Progress(phase="loading", model="b", elapsed_s=14.2, overdue=True)))[0]
    assert (found["x_hostler"]["elapsed_s"], found["x_hostler"]["overdue"]) == (14.2, True)


def test_there_are_no_heartbeats_when_off_or_not_streaming(chat: Any, start_encoder: Any) -> None:
    assert start_encoder(chat(stream=True), progress="off").heartbeat(LOADING) == b""
    assert start_encoder(chat()).heartbeat(LOADING) == b""


def test_the_responses_api_gets_comments_only(decode_request: Any, start_encoder: Any) -> None:
    encoder = start_encoder(decode_request("/v1/responses", {"input": "x", "stream": True}))
    assert encoder.heartbeat(LOADING).startswith(b": ")
    assert chunks(encoder.heartbeat(LOADING)) == []


def test_a_stream_of_sound_gets_nothing(decode_request: Any, start_encoder: Any) -> None:
    encoder = start_encoder(decode_request("/v1/audio/speech", {"input": "x", "stream_format": "sse"}))
    assert encoder.heartbeat(LOADING) == b""


def test_completions_get_empty_text(decode_request: Any, start_encoder: Any) -> None:
    encoder = start_encoder(decode_request("/v1/completions", {"prompt": "x", "stream": True}))
    encoder.heartbeat(LOADING)
    heartbeat = chunks(encoder.heartbeat(LOADING))[0]
    assert (heartbeat["object"], heartbeat["choices"][0]["text"]) == ("text_completion", "")


def test_a_model_name_cannot_break_the_stream(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True))
    heartbeat = encoder.heartbeat(Progress(phase="loading", model='b\n\ndata: {"evil":1}\n\n'))
    assert len(chunks(heartbeat)) == 1


def test_an_error_ends_the_stream(chat: Any, start_encoder: Any) -> None:
    data = start_encoder(chat(stream=True)).error(ModelUnavailable("b failed to load"))
    assert data.endswith(b"data: [DONE]\n\n")
    assert json.loads(data.split(b"\n\n")[0][6:]) == {
        "error": {"message": "b failed to load", "type": "server_error", "param": None, "code": "model_not_available"}
    }


def test_an_error_in_a_responses_stream_fails_it_and_is_its_last_event(decode_request: Any, start_encoder: Any) -> None:
    encoder = start_encoder(decode_request("/v1/responses", {"input": "x", "stream": True}))
    (failed, response), (name, data) = sse.iter_events(encoder.error(ModelUnavailable("no")))
    assert (failed, json.loads(response)["response"]["status"]) == ("response.failed", "failed")
    assert (name, json.loads(data)["type"], json.loads(data)["code"]) == ("error", "error", "model_not_available")
