"""Errors of every server are read in any form, and a request that is too long is recognised in any words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fakes.server_errors import OVERFLOWS, REQUEST_FAULTS, ServerError
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.anthropic.response_parser import AnthropicParser
from hostler.adapters.base import Parser
from hostler.adapters.canonical import ResponseHead
from hostler.adapters.error_body import ErrorDetails, error_in, error_in_response, is_passed_on, read_error
from hostler.adapters.errors import BackendBroken, BackendRejected
from hostler.adapters.llamacpp.response_parser import LlamaCppParser
from hostler.adapters.ollama.response_parser import OllamaParser
from hostler.adapters.openai.response_parser import OpenAIParser


@pytest.mark.parametrize("error", [*REQUEST_FAULTS, *OVERFLOWS], ids=lambda error: error.name)
def test_errors_of_servers_are_read(error: ServerError) -> None:
    details = read_error(error.data)
    assert details is not None
    assert error.words in details.message
    assert details.is_overflow is (error in OVERFLOWS)
    assert details.sizes == error.sizes


@pytest.mark.parametrize(
    ("unit", "is_overflow"),
    [
        ("exceed", False),
        ("overflow", False),
        ("max_seq", False),
        ("too long", False),
        ("context", False),
        (" (", False),
        ("exceeds context ", True),
        ("(1 tokens) ", False),
        ("first 1 tokens ", False),
        ("length 1 is max", False),
    ],
)
def test_the_words_of_an_error_are_searched_in_no_time(unit: str, is_overflow: bool) -> None:
    details = read_error(json.dumps({"error": {"message": unit * 2000, "metadata": {"raw": unit * 2000}}}).encode())
    assert details is not None
    began_at = time.process_time()
    assert (details.is_overflow, details.sizes) == (is_overflow, None)
    assert time.process_time() - began_at < 1.0


TOO_LONG = [
    "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "input (5000 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
    "input is too large to process. increase the physical batch size",
    "input (9000 tokens) is larger than the max context size (8192 tokens). skipping",
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion). Please reduce the length of the messages or completion.",
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no smaller than the number of text tokens.",
    "You passed 5001 input tokens and requested 1 output tokens. However, the model's context length is only 4096 tokens, resulting in a maximum input length of 4095 tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=5001)",
    "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum context length is 4096 tokens and your request has 100 input tokens (8000 > 4096 - 100).",
    "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
    "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 tokens: 4000 tokens from the input messages and 1000 tokens for the completion.",
    "Input length (9000 tokens) exceeds the maximum allowed length (8191 tokens). Use a shorter input or enable --allow-auto-truncate.",
    "the input length exceeds the context length",
    "input length exceeds maximum context length",
    "prompt too long; exceeded max context length by 904 tokens",
    "Trying to keep the first 14538 tokens when context the overflows. However, the model is loaded with context length of only 2048 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter input",
    "The number of tokens to keep from the initial prompt is greater than the context length. Try to load the model with a larger context length, or provide a shorter input",
    "Context size has been exceeded.",
    "Reached context length of 4096 tokens with this model, but this model does not currently support mid-generation context overflow",
    "Request length 71599 + 2048 is greater than max_seq_len 65536",
    "Prompt length 5000 is greater than max_seq_len 4096",
    "length of prompt_tokens (147509) must be less than max_seq_len (65536).",
    "The input token count (134123) exceeds the maximum number of tokens allowed (131072).",
    "The input token count exceeds the maximum number of tokens allowed 1048576.",
    "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "Please reduce the length of the messages or completion.",
    'This endpoint\'s maximum context length is 8192 tokens. However, you requested about 9000 tokens (9000 of text input). Please reduce the length of either one, or use the "middle-out" transform to compress your prompt automatically.',
    "prompt is too long: 209000 tokens > 200000 maximum",
    "input length and `max_tokens` exceed context limit: 199211 + 20000 > 200000, decrease input length or `max_tokens` and try again",
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100 `max_new_tokens`",
    "`inputs` must have less than 4096 tokens. Given: 5000",
    "Input is too long for requested model.",
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    "Requested generation length 1 is not possible! The provided prompt is 4309 tokens long, so generating 1 tokens requires a sequence length of 4310, but the maximum supported sequence length is just 4096!",
    "Token limit exceeded: prompt has 5000 tokens, context window is 4096",
]
OTHER_REASONS = [
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    "max_tokens is too large: 100000. This model supports at most 16384 completion tokens, whereas you provided 100000.",
    "failed to load model: could not allocate context size 131072",
    "CUDA error: out of memory",
    "Rate limit reached for model in organization on tokens per minute (TPM): Limit 6000, Used 5000, Requested 2000.",
    "temperature must be less than or equal to 2",
    "Request too large for model `x` in organization `y` on tokens per minute (TPM): Limit 6000, Requested 8000",
    "Too many requests, please slow down",
    "tools param requires --jinja flag",
    "Compute error.",
    "Failed to parse input at pos 12",
    "Value is not callable: null at row 1",
    "unsupported content[].type",
    "The model `x` does not exist",
    "Error rendering prompt with jinja template",
    "Only user and assistant roles are supported!",
    "'messages' must be an array",
    "invalid image: exceeds 20 MB",
    "Too many images: the maximum is 5",
    "'n' must be less than 8",
    "You requested too many tokens per minute",
]


@pytest.mark.parametrize("message", TOO_LONG)
def test_a_request_that_is_too_long_is_recognised(message: str) -> None:
    assert ErrorDetails(message=message).is_overflow


@pytest.mark.parametrize("message", OTHER_REASONS)
def test_other_reasons_are_not_taken_for_length(message: str) -> None:
    assert not ErrorDetails(message=message).is_overflow


def test_the_size_of_a_prompt_that_fits_is_not_shown() -> None:
    words = (
        "'max_tokens' is too large: 8000. This model's maximum context length is 4096 tokens and your request has 100"
    )
    assert ErrorDetails(message=f"{words} input tokens (8000 > 4096 - 100).").sizes is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"code": 429}, 429), ({"code": "429"}, 429), ({"status": "RESOURCE_EXHAUSTED"}, 429), ({"status": 404}, 404),
        ({"type": "overloaded_error"}, 529), ({"code": "rate_limit_exceeded"}, 429), ({"status_code": 503}, 503),
        ({"code": 200}, None), ({"code": True}, None), ({"code": 10**400}, None), ({"code": "x"}, None),
    ],
)  # fmt: skip
def test_an_error_names_a_status_in_many_ways(fields: dict[str, Any], status: int | None) -> None:
    details = error_in({"error": {"message": "x", **fields}})
    assert details is not None
    assert details.status == status


def test_an_error_within_an_error_is_read() -> None:
    inner = json.dumps({"error": {"code": 400, "message": "too few", "status": "INVALID_ARGUMENT"}})
    details = read_error(json.dumps({"error": {"message": inner, "code": 500}}).encode())
    assert details is not None
    assert (details.message, details.status) == ("too few", 400)
    deep = "x"
    for _ in range(20):
        deep = json.dumps({"error": {"message": deep}})
    assert read_error(deep.encode()) is not None


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"[]", b"{}", b'"x"', b"[1, 2]", b'{"id": 1}', b'{"error": {}}', b'{"error": ""}',
             b'{"message": {"role": "assistant"}}', b"\xff"],
)  # fmt: skip
def test_what_is_no_error_is_none(body: bytes) -> None:
    assert read_error(body) is None


def test_an_answer_is_no_error() -> None:
    assert error_in({"message": {"role": "assistant", "content": "no"}, "done": True, "error": None}) is None
    assert error_in({"choices": [], "message": "x"}) is None


def test_an_error_in_a_response_has_the_status_that_its_words_mean() -> None:
    for error in OVERFLOWS:
        assert (error_in_response(error.data).backend_status or 500) in (400, error.status)
    broken = error_in_response(b'{"error": "prompt is too long"}')
    assert (broken.backend_status, broken.body) == (400, b'{"error": "prompt is too long"}')
    assert error_in_response(b"null").backend_status is None


SSE, JSON, LINES = "text/event-stream", "application/json", "application/x-ndjson"
_OPENAI: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"content": "Hi"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
_ANTHROPIC: list[dict[str, Any]] = [
    {"type": "message_start", "message": {}},
    {"type": "content_block_delta", "index": 0, "delta": {"text": "Hi"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    {"type": "message_stop"},
]
_OLLAMA: list[dict[str, Any]] = [{"message": {"content": "Hi"}}, {"message": {}, "done": True, "done_reason": "stop"}]
_LLAMACPP: list[dict[str, Any]] = [{"content": "Hi", "stop": False}, {"content": "", "stop": True}]
_RESPONSE = {"type": "response.completed", "response": {"id": "r", "output": []}}
_MESSAGE = {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}

#: Right answers in every protocol, streamed and whole, with their parsers and labels.
ANSWERS: dict[str, tuple[Callable[[], Parser], str, list[dict[str, Any]]]] = {
    "openai": (lambda: OpenAIParser("chat"), SSE, _OPENAI),
    "openai, decoded": (lambda: OpenAIParser("chat", fields=True), SSE, _OPENAI),
    "openai, whole": (lambda: OpenAIParser("chat"), JSON, [{"choices": [{"message": {"content": "Hi"}}]}]),
    "responses": (lambda: OpenAIParser("responses"), SSE, [_RESPONSE]),
    "responses, whole": (lambda: OpenAIParser("responses"), JSON, [{"status": "completed", "output": []}]),
    "anthropic": (AnthropicParser, SSE, _ANTHROPIC),
    "anthropic, decoded": (lambda: AnthropicParser(fields=True), SSE, _ANTHROPIC),
    "anthropic, whole": (AnthropicParser, JSON, [_MESSAGE]),
    "ollama": (lambda: OllamaParser("chat"), LINES, _OLLAMA),
    "ollama, whole": (lambda: OllamaParser("chat"), JSON, [{"message": {"content": "Hi"}, "done": True}]),
    "ollama, embeddings": (lambda: OllamaParser("embed"), JSON, [{"embeddings": [[1.0]]}]),
    "llama.cpp": (lambda: LlamaCppParser(responses=1), SSE, _LLAMACPP),
    "llama.cpp, whole": (lambda: LlamaCppParser(responses=1), JSON, [{"content": "Hi", "stop": True}]),
}


def parse(answer: str, error: Any) -> None:
    """Parse an answer whose every object has this `error`."""
    make, media_type, objects = ANSWERS[answer]
    encoded = [json.dumps(each | {"error": error}).encode() for each in objects]
    body = b"".join(b"data: " + each + b"\n\n" if media_type == SSE else each + b"\n" for each in encoded)
    parser = make()
    parser.start(ResponseHead(media_type=media_type))
    list(parser.feed(body))
    list(parser.finish())


@pytest.mark.parametrize("error", [None, {}, [], "", False], ids=repr)
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_empty_error_in_a_response_is_none_in_any_protocol(answer: str, error: Any) -> None:
    parse(answer, error)


@pytest.mark.parametrize("error", ["boom", {"message": "boom"}, ["boom"], {"error": "boom"}], ids=repr)
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_error_in_a_response_is_one_in_any_protocol(answer: str, error: Any) -> None:
    with pytest.raises(BackendBroken, match="boom"):
        parse(answer, error)


def test_a_large_error_in_a_response_is_kept_short() -> None:
    for data in (json.dumps({"error": {"message": "x" * 10**6, "code": 400}}).encode(), b"[" + b"1," * 10**5 + b"1]"):
        broken = error_in_response(data)
        assert len(broken.body) < 65536
        assert len(broken.message) < 1000


def test_a_stack_trace_is_not_passed_on() -> None:
    def rejected(body: bytes, status: int = 400) -> BackendRejected:
        return BackendRejected("x", backend="b", wire="openai", backend_status=status, headers={}, body=body)

    assert is_passed_on(rejected(b'{"error": "x"}'))
    assert not is_passed_on(rejected(b'{"error": {"message": "x", "trace": "Traceback (most recent call last)"}}'))
    assert not is_passed_on(rejected(b'{"error": "x"}', 401))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["error", '{"error":{}}', "400"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "detail", "code", "type", "status", "object", "loc", "msg", "metadata"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values)
def test_any_json_is_read_or_is_no_error(value: Any) -> None:
    details = read_error(json.dumps(value).encode())
    if details is not None:
        assert isinstance(details.message, str)
        assert details.is_overflow in (True, False)
        assert details.sizes is None or len(details.sizes) == 2


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" + "0" * 400, "1" + "0" * 5000, '"many"', "null"])
def test_an_error_is_read_whatever_its_numbers(number: str) -> None:
    for form in ('{"error":{"message":"bad image","code":%s}}', '{"object":"error","message":"bad image","code":%s}'):
        details = read_error((form % number).encode())
        assert details is not None
        assert (details.message, details.status) == ("bad image", None)


def test_the_title_of_problem_details_is_their_message() -> None:
    for body in ({"type": "about:blank", "title": "Prompt too odd"}, {"title": "Prompt too odd", "status": 400}):
        details = read_error(json.dumps(body).encode())
        assert details is not None
        assert details.message == "Prompt too odd"
    with_detail = read_error(b'{"title": "Bad Request", "status": 400, "detail": "Prompt too odd"}')
    assert with_detail is not None
    assert with_detail.message == "Prompt too odd"
    for other in ({"title": "x"}, {"title": " ", "status": 400}, {"title": 3, "status": 400}):
        assert read_error(json.dumps(other).encode()) is None
